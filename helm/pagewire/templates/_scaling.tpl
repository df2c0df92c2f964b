{{/* A group takes minutes to load: add generously, remove one at a time. */}}
{{- define "pagewire.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 30
  policies:
    - {type: Percent, value: 100, periodSeconds: 120}
    - {type: Pods, value: 1, periodSeconds: 120}
  selectPolicy: Max
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownStabilizationSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 120}
{{- end -}}
