{{/* The pod of one shard; the StatefulSet and the LeaderWorkerSet make it from the same template. */}}
{{- define "pagewire.shardPodTemplate" -}}
{{- $component := dict "root" $ "component" "shard" -}}
{{- $shard := .Values.shard -}}
{{- $cuda := eq $shard.device "cuda" -}}
{{- $toleration := dict "key" $shard.gpu.resourceName "operator" "Exists" "effect" "NoSchedule" -}}
metadata:
  labels:
    {{- include "pagewire.podLabels" $component | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: shard
    {{- with $shard.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "pagewire.podIdentity" . | nindent 2 }}
  {{- with include "pagewire.scheduling" (merge (dict "tolerations" (ternary (list $toleration) list $cuda)) $component) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if and $cuda $shard.gpu.runtimeClassName }}
  runtimeClassName: {{ $shard.gpu.runtimeClassName }}
  {{- end }}
  # The router moves the shard's sequences to other groups at once; without another group they may run to their end.
  terminationGracePeriodSeconds: {{ add (include "pagewire.drainSeconds" .) 15 }}
  containers:
    - name: shard
      image: {{ include "pagewire.image" (dict "root" $ "image" $shard.image) }}
      imagePullPolicy: {{ $shard.image.pullPolicy }}
      command: [pagewire-shard]
      args:
        {{- include "pagewire.shardArguments" . | nindent 8 }}
      env:
        {{- include "pagewire.shardEnv" . | nindent 8 }}
      ports:
        - {name: grpc, containerPort: 50052, protocol: TCP}
        - {name: metrics, containerPort: 9400, protocol: TCP}
        - {name: health, containerPort: 50059, protocol: TCP}
      {{- include "pagewire.probes" (dict "service" "pagewire.v1.Shard") | nindent 6 }}
      resources:
        {{- $gpu := ternary (dict "limits" (dict $shard.gpu.resourceName 1)) dict $cuda }}
        {{- toYaml (mergeOverwrite (deepCopy $shard.resources) $gpu) | nindent 8 }}
      securityContext:
        {{- include "pagewire.containerSecurityContext" . | nindent 8 }}
      volumeMounts:
        {{- include "pagewire.shardVolumeMounts" . | nindent 8 }}
  volumes:
    {{- include "pagewire.shardVolumes" . | nindent 4 }}
{{- end -}}

{{/* "true" if the shard's threads follow from its CPU request; else it takes all cores it sees. */}}
{{- define "pagewire.hasThreads" -}}
{{- if and (eq .Values.shard.device "cpu") (.Values.shard.resources.requests | default dict).cpu }}true{{ end -}}
{{- end -}}

{{- define "pagewire.shardArguments" -}}
{{- $shard := .Values.shard -}}
- --model={{ include "pagewire.modelArgument" . }}
{{- with .Values.model.name }}
- --served-model-name={{ . }}
{{- end }}
- --dtype={{ .Values.model.dtype }}
- --device={{ $shard.device }}
- --listen={{ .Values.bindAddress }}:50052
- --metrics-port=9400
- --health-port=50059
{{- if include "pagewire.isLeaderWorkerSet" . }}
- --group-id={{ include "pagewire.shardName" . }}-$(GROUP_INDEX)
- --tp-size={{ $shard.tensorParallelSize }}
- --tp-rank=$(WORKER_INDEX)
- --rendezvous=$(LWS_LEADER_ADDRESS):29500
{{- else }}
- --group-id=$(POD_NAME)
{{- end }}
- --drain-grace={{ include "pagewire.drainSeconds" . }}
{{- with .Values.model.maxModelLen }}
- --max-model-len={{ int64 . }}
{{- end }}
{{- with $shard.maxNumSeqs }}
- --max-num-seqs={{ int64 . }}
{{- end }}
{{- with $shard.maxNumBatchedTokens }}
- --max-num-batched-tokens={{ int64 . }}
{{- end }}
{{- with $shard.blockSize }}
- --block-size={{ int64 . }}
{{- end }}
{{- with $shard.kvCacheMemory }}
- --kv-cache-memory={{ . }}
{{- end }}
{{- with $shard.gpuMemoryUtilization }}
- --gpu-memory-utilization={{ . }}
{{- end }}
{{- if include "pagewire.hasThreads" . }}
- --cpu-threads=$(CPU_REQUEST)
{{- end }}
- --log-level={{ $shard.logLevel }}
{{- if .Values.tls.shard.existingSecret }}
- --tls-cert=/etc/pagewire/tls/tls.crt
- --tls-key=/etc/pagewire/tls/tls.key
{{- end }}
{{- if .Values.tls.shard.routerExistingSecret }}
- --tls-client-ca=/etc/pagewire/tls/ca.crt
{{- end }}
{{- range $shard.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "pagewire.shardEnv" -}}
{{- $shard := .Values.shard -}}
{{- if .Values.tracing.enabled -}}
{{ include "pagewire.tracingEnv" (dict "root" $ "component" "shard") }}
{{- else -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end }}
{{- if include "pagewire.isLeaderWorkerSet" . }}
# The controller adds LWS_LEADER_ADDRESS.
- name: GROUP_INDEX
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['leaderworkerset.sigs.k8s.io/group-index']"}}
- name: WORKER_INDEX
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']"}}
{{- end }}
{{- if include "pagewire.hasThreads" . }}
# A process sees all cores of its node, whatever it was promised.
- name: CPU_REQUEST
  valueFrom: {resourceFieldRef: {containerName: shard, resource: requests.cpu, divisor: "1"}}
{{- end }}
# All that is ever written lies in emptyDirs.
- name: HOME
  value: /tmp
- name: NUMBA_CACHE_DIR
  value: /var/cache/pagewire/numba
- name: TRITON_CACHE_DIR
  value: /var/cache/pagewire/triton
{{- if eq .Values.model.source "hub" }}
- name: HF_HOME
  value: /var/cache/huggingface
{{- if .Values.model.hub.tokenSecret.name }}
- name: HF_TOKEN_PATH
  value: /etc/pagewire/hub/token
{{- end }}
{{- else }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- with $shard.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pagewire.shardVolumeMounts" -}}
{{- $source := .Values.model.source -}}
- {name: tmp, mountPath: /tmp}
- {name: kernel-cache, mountPath: /var/cache/pagewire}
- {name: shared-memory, mountPath: /dev/shm}
{{- if has $source (list "pvc" "image") }}
- {name: model, mountPath: /models, readOnly: true}
{{- else if eq $source "hub" }}
- {name: model-cache, mountPath: /var/cache/huggingface}
{{- if .Values.model.hub.tokenSecret.name }}
- {name: hub-token, mountPath: /etc/pagewire/hub, readOnly: true}
{{- end }}
{{- end }}
{{- if .Values.tls.shard.existingSecret }}
- {name: tls, mountPath: /etc/pagewire/tls, readOnly: true}
{{- end }}
{{- with .Values.shard.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pagewire.shardVolumes" -}}
{{- $model := .Values.model -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: kernel-cache
  emptyDir: {sizeLimit: 2Gi}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.shard.sharedMemorySize }}}
{{- if eq $model.source "pvc" }}
- name: model
  persistentVolumeClaim: {claimName: {{ $model.pvc.claimName }}, readOnly: true}
{{- else if eq $model.source "image" }}
- name: model
  image: {reference: {{ $model.image.reference | quote }}, pullPolicy: {{ $model.image.pullPolicy }}}
{{- else if eq $model.source "hub" }}
{{- if eq $model.hub.cache.type "emptyDir" }}
- name: model-cache
  emptyDir: {sizeLimit: {{ $model.hub.cache.size }}}
{{- else if eq $model.hub.cache.type "existingClaim" }}
- name: model-cache
  persistentVolumeClaim: {claimName: {{ $model.hub.cache.existingClaim }}}
{{- end }}
{{- with $model.hub.tokenSecret }}
{{- if .name }}
- name: hub-token
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: token}]}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.tls.shard.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}, {key: ca.crt, path: ca.crt}]}
{{- end }}
{{- with .Values.shard.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
