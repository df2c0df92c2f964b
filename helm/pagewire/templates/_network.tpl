{{/* Egress of traces, a list of rules: to the chart's own Jaeger, or to wherever the endpoint may be. */}}
{{- define "pagewire.tracingEgress" -}}
{{- if .Values.tracing.enabled -}}
{{- if .Values.tracing.endpoint -}}
- to:
    {{- toYaml .Values.networkPolicy.otlp | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ include "pagewire.otlpPort" . }}}
{{- else -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "pagewire.selectorLabels" (dict "root" . "component" "jaeger") | nindent 10 }}
  ports:
    - {protocol: TCP, port: 4317}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a shard reaches, a list of rules that may be empty: then it reaches nothing but DNS. */}}
{{- define "pagewire.shardEgress" -}}
{{- if include "pagewire.isLeaderWorkerSet" . }}
- to:
    - podSelector:
        matchLabels:
          {{- include "pagewire.selectorLabels" (dict "root" . "component" "shard") | nindent 10 }}
{{- end }}
{{- if eq .Values.model.source "hub" }}
- to:
    {{- toYaml .Values.networkPolicy.modelHub | nindent 4 }}
  ports:
    - {protocol: TCP, port: 443}
{{- end }}
{{ include "pagewire.tracingEgress" . }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
