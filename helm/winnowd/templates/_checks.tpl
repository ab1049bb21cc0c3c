{{/* Refuses values that would install and then fail, or lose what somebody relies on. */}}

{{- define "winnowd.checks" -}}
{{- $config := .Values.config -}}
{{- $workers := .Values.replicas | int -}}
{{- if include "winnowd.autoscales" . }}{{ $workers = .Values.autoscaling.maxReplicas | int }}{{ end -}}
{{- $several := or (gt $workers 1) (include "winnowd.autoscales" .) -}}

{{- if and (include "winnowd.usesSqlite" .) $several -}}
{{- printf "config.catalog.url = %s: SQLite is for one worker, %d are asked for; use postgres://USER@HOST/DATABASE"
  (include "winnowd.config" (dict "root" . "key" "catalog.url")) $workers | fail -}}
{{- end -}}
{{- if and (include "winnowd.usesFolder" .) $several (not .Values.storage.existingClaim) -}}
{{- printf "config.sink.url = %s: each of %d workers would have a folder of its own; use a store, or storage.existingClaim"
  (include "winnowd.config" (dict "root" . "key" "sink.url")) $workers | fail -}}
{{- end -}}
{{- if and (eq (include "winnowd.config" (dict "root" . "key" "kafka.bootstrap")) "embedded") $several -}}
{{- fail "config.kafka.bootstrap = embedded: each worker would have a cluster of its own; it is for one worker" -}}
{{- end -}}

{{- range list "kafka.instance_id" "http.listen" "model.path" "sink.scratch_dir" -}}
{{- if include "winnowd.config" (dict "root" $ "key" .) -}}
{{- printf "config.%s is set by the chart itself" . | fail -}}
{{- end -}}
{{- end -}}
{{- $secret := regexFind "\"[^\"]*(?i:(?:pass|pwd|secret|credential|jaas|key\\.pem|oauth)[^\"]*|token)\":\"[^\"]+\"" (toJson $config) -}}
{{- if $secret -}}
{{- printf "config: %s looks like a secret, which a ConfigMap does not keep; put it into a Secret and name that in secretEnv"
  (regexFind "\"[^\"]+\"" $secret) | fail -}}
{{- end -}}
{{- if regexMatch "://[^/@]*:[^/@]*@" (include "winnowd.config" (dict "root" . "key" "catalog.url")) -}}
{{- fail "config.catalog.url holds a password, which a ConfigMap does not keep; name its Secret in secretEnv.WINNOWD_CATALOG__PASSWORD" -}}
{{- end -}}

{{- with .Values.resources.limits }}{{ with .memory -}}
{{- $limit := include "winnowd.bytes" (dict "name" "resources.limits.memory" "value" .) | int64 -}}
{{- $budget := include "winnowd.bytes" (dict "name" "config.memory.budget" "value" (include "winnowd.config" (dict "root" $ "key" "memory.budget"))) | int64 -}}
{{- if lt $limit (add $budget 167772160) -}}
{{- printf "resources.limits.memory = %s: must be config.memory.budget (%d MiB) and 160 MiB at least, or the worker is killed under load"
  (toString .) (div $budget 1048576) | fail -}}
{{- end -}}
{{- end }}{{ end -}}
{{- $scratch := include "winnowd.bytes" (dict "name" "scratch.size" "value" .Values.scratch.size) | int64 -}}
{{- $shard := include "winnowd.bytes" (dict "name" "config.shard.target_bytes" "value" (include "winnowd.config" (dict "root" . "key" "shard.target_bytes"))) | int64 -}}
{{- /* A shard and its dead letters; and beside them its rows before compression, where they wait to be shuffled. */ -}}
{{- $shards := eq (include "winnowd.config" (dict "root" . "key" "sink.shuffle")) "true" | ternary 4 2 -}}
{{- $needed := mul $shards $shard -}}
{{- $what := printf "%d times config.shard.target_bytes (%d MiB)" $shards (div $shard 1048576) -}}
{{- $selector := include "winnowd.config" (dict "root" . "key" "selection.selector") -}}
{{- $unit := include "winnowd.config" (dict "root" . "key" "selection.unit") -}}
{{- if or (has $selector (list "coverage" "sensitivity")) (eq $unit "tokens") -}}
{{- /* A shard ends with the window that fills it, and such a window may be larger than all shards. */ -}}
{{- $window := include "winnowd.bytes" (dict "name" "config.window.max_bytes" "value" (include "winnowd.config" (dict "root" . "key" "window.max_bytes"))) | int64 -}}
{{- $fraction := include "winnowd.config" (dict "root" . "key" "selection.fraction") | float64 -}}
{{- $selected := mulf $window $fraction | ceil | int64 | mul (div $shards 2) -}}
{{- $needed = add $needed $selected -}}
{{- $what = printf "%s and what a window selects (%d MiB)" $what (div $selected 1048576) -}}
{{- if not (include "winnowd.config" (dict "root" . "key" "spool.folder")) -}}
{{- $spool := include "winnowd.bytes" (dict "name" "config.spool.max_bytes" "value" (include "winnowd.config" (dict "root" . "key" "spool.max_bytes"))) | int64 -}}
{{- $needed = add $needed $spool -}}
{{- $what = printf "config.spool.max_bytes (%d MiB) and %s" (div $spool 1048576) $what -}}
{{- end -}}
{{- end -}}
{{- if lt $scratch $needed -}}
{{- printf "scratch.size = %s: must be %s at least" .Values.scratch.size $what | fail -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.by "hpa") (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.by = hpa needs resources.requests.cpu" -}}
{{- end -}}
{{- if gt (.Values.autoscaling.minReplicas | int) (.Values.autoscaling.maxReplicas | int) -}}
{{- printf "autoscaling.minReplicas = %v: must be at most maxReplicas (%v)"
  .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas | fail -}}
{{- end -}}
{{- end -}}
