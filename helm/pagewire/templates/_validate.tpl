{{/* What the schema cannot see: values that contradict each other. Every message names the value to change. */}}
{{- define "pagewire.validate" -}}
{{- $errors := list -}}
{{- range $name, $image := dict "router.image" .Values.router.image "shard.image" .Values.shard.image "tracing.jaeger.image" .Values.tracing.jaeger.image -}}
{{- if and (eq ($image.tag | toString) "latest") (not $image.digest) -}}
{{- $errors = append $errors (printf "%s.tag: latest is no version; name one, or set %s.digest" $name $name) -}}
{{- end -}}
{{- end -}}

{{- $model := .Values.model -}}
{{- if and (eq $model.source "hub") (not $model.hub.id) -}}
{{- $errors = append $errors "model.hub.id: needed with model.source hub, such as Qwen/Qwen3-0.6B" -}}
{{- end -}}
{{- if and (eq $model.source "pvc") (not $model.pvc.claimName) -}}
{{- $errors = append $errors "model.pvc.claimName: needed with model.source pvc" -}}
{{- end -}}
{{- if eq $model.source "image" -}}
{{- if not $model.image.reference -}}
{{- $errors = append $errors "model.image.reference: needed with model.source image" -}}
{{- else if or (hasSuffix ":latest" $model.image.reference) (not (regexMatch "(:[^/:]+|@sha256:[0-9a-f]{64})$" $model.image.reference)) -}}
{{- $errors = append $errors (printf "model.image.reference: %s names no version; add a tag other than latest, or a digest" $model.image.reference) -}}
{{- end -}}
{{- if semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version -}}
{{- $errors = append $errors (printf "model.source: image volumes need Kubernetes 1.33 or newer, this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- if eq $model.source "hub" -}}
{{- if and (eq $model.hub.cache.type "existingClaim") (not $model.hub.cache.existingClaim) -}}
{{- $errors = append $errors "model.hub.cache.existingClaim: needed with model.hub.cache.type existingClaim" -}}
{{- end -}}
{{- if and (eq $model.hub.cache.type "volumeClaimTemplate") (include "pagewire.isLeaderWorkerSet" .) -}}
{{- $errors = append $errors "model.hub.cache.type: volumeClaimTemplate works with shard.tensorParallelSize 1 alone; use existingClaim" -}}
{{- end -}}
{{- end -}}

{{- $scaling := .Values.autoscaling -}}
{{- if ne $scaling.mode "none" -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- $errors = append $errors (printf "autoscaling.minReplicas: %d is more than autoscaling.maxReplicas, %d" (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $scaling.mode "keda") (not $scaling.keda.serverAddress) -}}
{{- $errors = append $errors "autoscaling.keda.serverAddress: needed with autoscaling.mode keda, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- end -}}

{{- range $name := list "ingress" "httpRoute" -}}
{{- if and (index $.Values $name).enabled (not $.Values.router.service.httpPort) -}}
{{- $errors = append $errors (printf "%s.enabled: there is no HTTP without router.service.httpPort" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "httpRoute" "grpcRoute" -}}
{{- $route := index $.Values $name -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- $errors = append $errors (printf "%s.parentRefs: needed with %s.enabled, such as [{name: gateway}]" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.backendTLSPolicy.enabled (not .Values.tls.router.existingSecret) -}}
{{- $errors = append $errors "backendTLSPolicy.enabled: the router has no TLS without tls.router.existingSecret" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled .Values.grpcRoute.enabled -}}
{{- $shared := list -}}
{{- range .Values.grpcRoute.hostnames }}{{ if has . $.Values.httpRoute.hostnames }}{{ $shared = append $shared . }}{{ end }}{{ end -}}
{{- $isOpen := or (not .Values.httpRoute.hostnames) (not .Values.grpcRoute.hostnames) -}}
{{- if and (or $shared $isOpen) (eq (toJson .Values.httpRoute.parentRefs) (toJson .Values.grpcRoute.parentRefs)) -}}
{{- $errors = append $errors "grpcRoute.hostnames: a gateway accepts an HTTPRoute or a GRPCRoute for a host name, not both; give them different ones" -}}
{{- end -}}
{{- end -}}

{{- $tls := .Values.tls -}}
{{- if and $tls.router.clientCA.existingSecret (not $tls.router.existingSecret) -}}
{{- $errors = append $errors "tls.router.clientCA.existingSecret: clients can show certificates over TLS alone; set tls.router.existingSecret" -}}
{{- end -}}
{{- if and $tls.shard.routerExistingSecret (not $tls.shard.existingSecret) -}}
{{- $errors = append $errors "tls.shard.routerExistingSecret: a router shows its certificate over TLS alone; set tls.shard.existingSecret" -}}
{{- end -}}

{{- if and .Values.tracing.enabled (not .Values.tracing.endpoint) (not .Values.tracing.jaeger.enabled) -}}
{{- $errors = append $errors "tracing.endpoint: needed with tracing.enabled, unless tracing.jaeger.enabled" -}}
{{- end -}}
{{- if and .Values.shard.exclusiveTopologyKey (not (include "pagewire.isLeaderWorkerSet" .)) -}}
{{- $errors = append $errors "shard.exclusiveTopologyKey: works with shard.tensorParallelSize above 1 alone" -}}
{{- end -}}

{{- if $errors -}}
{{- fail (printf "\n\nThese values do not fit together:\n  - %s\n" (join "\n  - " $errors)) -}}
{{- end -}}
{{- end -}}
