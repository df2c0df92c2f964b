{{/* Names and labels. Those for one component take (dict "root" $ "component" "router"). */}}

{{- define "pagewire.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: a StatefulSet adds "-shard", an ordinal and a hash, all of which must fit into a label. */}}
{{- define "pagewire.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "pagewire.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "pagewire.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.componentName" -}}
{{- printf "%s-%s" (include "pagewire.fullname" .root) .component -}}
{{- end -}}

{{- define "pagewire.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pagewire.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pagewire.releaseLabels" -}}
app.kubernetes.io/name: {{ include "pagewire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pagewire.selectorLabels" -}}
{{ include "pagewire.releaseLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "pagewire.labels" -}}
{{ include "pagewire.releaseLabels" .root }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pagewire
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A pod's labels: those of its component, without the chart's version, which would restart pods for nothing. */}}
{{- define "pagewire.podLabels" -}}
{{- $own := merge (include "pagewire.selectorLabels" . | fromYaml) (dict "app.kubernetes.io/part-of" "pagewire") -}}
{{- $values := index .root.Values .component | default dict -}}
{{ toYaml (mergeOverwrite (dict) .root.Values.commonLabels ($values.podLabels | default dict) $own) }}
{{- end -}}

{{/* Where clients in the cluster find the router. */}}
{{- define "pagewire.clientAddress" -}}
{{ include "pagewire.componentName" (dict "root" . "component" "router") }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.router.service.port }}
{{- end -}}
