{{/* Names, labels, and what the configuration says about the deployment. */}}

{{- define "winnowd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Pods are called after it, with a number, and labels take 63 letters. */}}
{{- define "winnowd.fullname" -}}
{{- $name := include "winnowd.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "winnowd.selector" -}}
app.kubernetes.io/name: {{ include "winnowd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "winnowd.labels" -}}
{{ include "winnowd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "winnowd.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "winnowd.serviceAccount" -}}
{{- $account := .Values.serviceAccount -}}
{{- default ($account.create | ternary (include "winnowd.fullname" .) "default") $account.name -}}
{{- end -}}

{{/* One key of the configuration, by its name with dots; where it is not set, the daemon's own default. */}}
{{- define "winnowd.config" -}}
{{- $defaults := dict
  "kafka.bootstrap" "localhost:9092" "kafka.drain_timeout" "20s" "shutdown.grace" "30s" "memory.budget" "512MiB"
  "shard.target_bytes" "128MiB" "shard.max_age" "1m" "window.max_age" "10m" "window.idle_timeout" "30s"
  "selection.selector" "importance_resampling" "selection.fraction" 0.1 "window.max_bytes" "256MiB"
  "spool.folder" "" "spool.max_bytes" "16GiB"
  "sink.shuffle" true "sink.url" "winnowd-data" "catalog.url" "sqlite://winnowd.db" -}}
{{- $parts := splitList "." .key -}}
{{- $section := index .root.Values.config (first $parts) | default dict -}}
{{- $value := index $section (last $parts) -}}
{{- if kindIs "invalid" $value }}{{ $value = get $defaults .key }}{{ end -}}
{{- if kindIs "float64" $value }}{{ if eq $value (floor $value) }}{{ $value = int64 $value }}{{ end }}{{ end -}}
{{- $value -}}
{{- end -}}

{{- define "winnowd.usesSqlite" -}}
{{- if hasPrefix "sqlite://" (include "winnowd.config" (dict "root" . "key" "catalog.url")) }}true{{ end -}}
{{- end -}}

{{- define "winnowd.usesFolder" -}}
{{- $url := include "winnowd.config" (dict "root" . "key" "sink.url") -}}
{{- if or (hasPrefix "file://" $url) (not (contains "://" $url)) }}true{{ end -}}
{{- end -}}

{{- define "winnowd.needsStorage" -}}
{{- if or (include "winnowd.usesSqlite" .) (include "winnowd.usesFolder" .) }}true{{ end -}}
{{- end -}}

{{- define "winnowd.hasMigrationJob" -}}
{{- if and .Values.migration.job (not (include "winnowd.usesSqlite" .)) }}true{{ end -}}
{{- end -}}

{{- define "winnowd.autoscales" -}}
{{- if ne .Values.autoscaling.by "none" }}true{{ end -}}
{{- end -}}

{{/* The configuration file: `config` whole. */}}
{{- define "winnowd.toml" -}}
{{- $config := deepCopy .Values.config -}}
{{- include "winnowd.wholeNumbers" $config -}}
# Printed from the values of release {{ .Release.Name }}.
{{ $config | toToml | trim }}
{{- end -}}

{{/* Helm reads all numbers as floating-point ones and would print 2000000.0, or 2e+06. Changes the given dict. */}}
{{- define "winnowd.wholeNumbers" -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- include "winnowd.wholeNumbers" $value -}}
{{- else if kindIs "float64" $value -}}
{{- if eq $value (floor $value) }}{{ $_ := set $ $key (int64 $value) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What SIGTERM may take: finished windows are drained, then a publication is waited for, then the group is left. */}}
{{- define "winnowd.gracePeriod" -}}
{{- $drain := include "winnowd.seconds" (dict "root" . "key" "kafka.drain_timeout") | int -}}
{{- $grace := include "winnowd.seconds" (dict "root" . "key" "shutdown.grace") | int -}}
{{- $least := add $drain $grace 15 | int -}}
{{- $given := .Values.terminationGracePeriodSeconds | int -}}
{{- if and (gt $given 0) (lt $given $least) -}}
{{- printf "terminationGracePeriodSeconds = %d: must be at least %d, kafka.drain_timeout (%d s) and shutdown.grace (%d s) and 15 more"
  $given $least $drain $grace | fail -}}
{{- end -}}
{{- default $least $given -}}
{{- end -}}

{{/* Three times the longest that a healthy pipeline publishes nothing although records wait, in minutes. */}}
{{- define "winnowd.silentMinutes" -}}
{{- $window := include "winnowd.seconds" (dict "root" . "key" "window.max_age") | int -}}
{{- $idle := include "winnowd.seconds" (dict "root" . "key" "window.idle_timeout") | int -}}
{{- $shard := include "winnowd.seconds" (dict "root" . "key" "shard.max_age") | int -}}
{{- divf (mul 3 (add (max $window $idle) $shard)) 60 | ceil | int -}}
{{- end -}}
