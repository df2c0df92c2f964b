{{/* Shard groups: how many, by what controller, under which addresses. */}}

{{- define "pagewire.shardName" -}}
{{- include "pagewire.componentName" (dict "root" . "component" "shard") -}}
{{- end -}}

{{/* "true" if a group has several shards, so that a LeaderWorkerSet makes them; else empty. */}}
{{- define "pagewire.isLeaderWorkerSet" -}}
{{- if gt (int .Values.shard.tensorParallelSize) 1 }}true{{ end -}}
{{- end -}}

{{/* What an autoscaler scales. */}}
{{- define "pagewire.scaleTarget" -}}
{{- if include "pagewire.isLeaderWorkerSet" . -}}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else -}}
apiVersion: apps/v1
kind: StatefulSet
{{- end }}
name: {{ include "pagewire.shardName" . }}
{{- end -}}

{{/*
Where the router finds shards: one name, behind which it looks again every few seconds for all pods of the set, of
however many groups. Both controllers have a headless service of the set's own name; that of a LeaderWorkerSet is made
by its controller.
*/}}
{{- define "pagewire.shardTarget" -}}
dns:///{{ include "pagewire.shardName" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:50052
{{- end -}}

{{/* The shard's --model. */}}
{{- define "pagewire.modelArgument" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "demo" -}}
demo
{{- else if eq $model.source "hub" -}}
{{ $model.hub.id }}
{{- else -}}
{{ clean (printf "/models/%s" (index $model $model.source).path) }}
{{- end -}}
{{- end -}}

{{/* A shard lets running requests finish if no other group takes them over. */}}
{{- define "pagewire.drainSeconds" -}}
{{- int64 .Values.requests.maxTimeSeconds -}}
{{- end -}}
