{{/* Durations and sizes as the daemon reads them, for what the chart computes from its configuration. */}}

{{/* Seconds of a duration of the configuration, such as 1m 30s, rounded up. */}}
{{- define "winnowd.seconds" -}}
{{- $value := include "winnowd.config" . -}}
{{- if not (regexMatch "^( *[0-9]+ *[a-z]+)+ *$" $value) -}}
{{- printf "config.%s = %s: expected a duration such as 30s" .key $value | fail -}}
{{- end -}}
{{- $units := dict "ns" 0 "nsec" 0 "us" 0 "usec" 0 "ms" 1 "msec" 1
  "s" 1000 "sec" 1000 "second" 1000 "seconds" 1000 "m" 60000 "min" 60000 "minute" 60000 "minutes" 60000
  "h" 3600000 "hr" 3600000 "hour" 3600000 "hours" 3600000 "d" 86400000 "day" 86400000 "days" 86400000 -}}
{{- $millis := 0 -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" $value -1 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- if not (hasKey $units $unit) -}}
{{- printf "config.%s = %s: `%s` is no unit of time" $.key $value $unit | fail -}}
{{- end -}}
{{- $millis = add $millis (mul (regexFind "[0-9]+" . | int64) (get $units $unit)) -}}
{{- end -}}
{{- divf $millis 1000 | ceil | int64 -}}
{{- end -}}

{{/* Bytes of a size, the daemon's (64MiB) or Kubernetes' (64Mi). Takes a dict of name and value. */}}
{{- define "winnowd.bytes" -}}
{{- $value := toString .value | lower | replace " " "" | trimSuffix "b" -}}
{{- $units := dict "" 1 "k" 1e3 "m" 1e6 "g" 1e9 "t" 1e12 "ki" 1024 "mi" 1048576 "gi" 1073741824 "ti" 1099511627776 -}}
{{- $unit := regexFind "[a-z]*$" $value -}}
{{- $number := trimSuffix $unit $value -}}
{{- if or (not (regexMatch "^[0-9]+([.][0-9]+)?$" $number)) (not (hasKey $units $unit)) -}}
{{- printf "%s = %v: expected a size" .name .value | fail -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- end -}}
