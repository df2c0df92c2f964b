{{/* What the pods of all components have in common. */}}

{{/* (dict "root" $ "image" .Values.router.image) */}}
{{- define "pagewire.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{/* The restricted pod security standard; only the ids may be left to the platform. */}}
{{- define "pagewire.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurity.runAsGroup }}
runAsGroup: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurity.fsGroup }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pagewire.containerSecurityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Account, secrets and security of a pod. */}}
{{- define "pagewire.podIdentity" -}}
serviceAccountName: {{ include "pagewire.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "pagewire.podSecurityContext" . | nindent 2 }}
{{- end -}}

{{/* Where a component's pods may run: (dict "root" $ "component" "router" "tolerations" (list)) */}}
{{- define "pagewire.scheduling" -}}
{{- $values := index .root.Values .component -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $values.tolerations (.tolerations | default list) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "pagewire.selectorLabels" $ | fromYaml)) }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml (merge (deepCopy .) $selector) | nindent 4 }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/*
Probes of router and shard, on the plaintext health port, which asks for neither certificates nor keys. "liveness" is
SERVING as soon as the port is bound, also while a model loads or a standby waits for its turn.
(dict "service" "pagewire.v1.Inference")
*/}}
{{- define "pagewire.probes" -}}
startupProbe:
  grpc: {port: 50059, service: liveness}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  grpc: {port: 50059, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc: {port: 50059, service: {{ .service }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* The OpenTelemetry SDK reads these. (dict "root" $ "component" "router") */}}
{{- define "pagewire.tracingEnv" -}}
{{- $tracing := .root.Values.tracing -}}
{{- if $tracing.enabled -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_SERVICE_NAME
  value: pagewire-{{ .component }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ include "pagewire.otlpEndpoint" .root | quote }}
- name: OTEL_TRACES_SAMPLER
  value: {{ $tracing.sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $tracing.samplerArg | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ include "pagewire.resourceAttributes" . | quote }}
{{- end -}}
{{- end -}}

{{- define "pagewire.resourceAttributes" -}}
{{- $attributes := list
  "service.namespace=$(POD_NAMESPACE)"
  "service.instance.id=$(POD_NAME)"
  (printf "service.version=%s" .root.Chart.AppVersion)
  "k8s.namespace.name=$(POD_NAMESPACE)"
  "k8s.pod.name=$(POD_NAME)"
  "k8s.node.name=$(NODE_NAME)"
-}}
{{- range $name, $value := .root.Values.tracing.resourceAttributes -}}
{{- $attributes = append $attributes (printf "%s=%s" $name $value) -}}
{{- end -}}
{{- join "," $attributes -}}
{{- end -}}

{{- define "pagewire.otlpEndpoint" -}}
{{- if .Values.tracing.endpoint -}}
{{- .Values.tracing.endpoint -}}
{{- else -}}
http://{{ include "pagewire.componentName" (dict "root" . "component" "jaeger") }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:4317
{{- end -}}
{{- end -}}

{{- define "pagewire.otlpPort" -}}
{{- regexFind "[0-9]+$" (urlParse (include "pagewire.otlpEndpoint" .)).host | default "4317" -}}
{{- end -}}
