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
The addresses of all shards, for the router: the stable names of their pods. Both controllers give a pod a name that
survives it, below a headless service of the controller's own name. Groups that an autoscaler may add are listed, too.
*/}}
{{- define "pagewire.shardAddresses" -}}
{{- $set := include "pagewire.shardName" . -}}
{{- $domain := printf "%s.%s.svc.%s:50052" $set .Release.Namespace .Values.clusterDomain -}}
{{- $groups := ternary .Values.shard.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.mode "none") -}}
{{- $addresses := list -}}
{{- range $group := until (int $groups) -}}
{{- $addresses = append $addresses (printf "dns:///%s-%d.%s" $set $group $domain) -}}
{{- range $rank := untilStep 1 (int $.Values.shard.tensorParallelSize) 1 -}}
{{- $addresses = append $addresses (printf "dns:///%s-%d-%d.%s" $set $group $rank $domain) -}}
{{- end -}}
{{- end -}}
{{- join "," $addresses -}}
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
