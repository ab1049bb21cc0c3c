{{/* What the pods of workers, of the migration and of the test have in common. */}}

{{- define "winnowd.podSecurity" -}}
automountServiceAccountToken: false
# Variables of other services are no configuration.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Takes a dict: root, and the name of the container. */}}
{{- define "winnowd.container" -}}
name: {{ .name }}
image: {{ include "winnowd.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Takes a dict: root, and whether the catalog's schema is somebody else's business. */}}
{{- define "winnowd.env" -}}
- name: WINNOWD_HTTP__LISTEN
  value: 0.0.0.0:9464
- name: WINNOWD_MODEL__PATH
  value: /model/{{ .Values.model.file }}
- name: WINNOWD_SINK__SCRATCH_DIR
  value: /scratch
# Whatever else writes a temporary file: the root is read-only.
- name: TMPDIR
  value: /scratch
{{- if include "winnowd.hasMigrationJob" . }}
- name: WINNOWD_CATALOG__MIGRATE
  value: 'false'
{{- end }}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- range $name, $secret := .Values.secretEnv }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret.name }}
      key: {{ $secret.key }}
{{- end }}
{{- end -}}

{{- define "winnowd.mounts" -}}
- name: config
  mountPath: /etc/winnowd
  readOnly: true
- name: scratch
  mountPath: /scratch
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes a dict: root, and the name of the ConfigMap. */}}
{{- define "winnowd.volumes" -}}
- name: config
  configMap:
    name: {{ .configMap }}
- name: scratch
{{- $scratch := .root.Values.scratch }}
{{- if and $scratch.claim (not .isShort) }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $scratch.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ $scratch.size }}
{{- else }}
  emptyDir:
    sizeLimit: {{ $scratch.size }}
{{- end }}
{{- with .root.Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "winnowd.modelVolume" -}}
- name: model
  {{- with .Values.model.volume }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  configMap:
    name: {{ include "winnowd.fullname" . }}-model
  {{- end }}
{{- end -}}
