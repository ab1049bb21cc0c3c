{{/* Egress: ports that the configuration names, and those that the values add. */}}

{{/* One rule. Takes a dict: peers (ports, to), and the ports that the configuration names. */}}
{{- define "winnowd.egress" -}}
{{- $ports := concat .named .peers.ports | uniq -}}
- ports:
    {{- range $ports }}
    - port: {{ . | int }}
      protocol: TCP
    {{- end }}
  {{- with .peers.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "winnowd.egressDns" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{- define "winnowd.egressKafka" -}}
{{- $named := list -}}
{{- range regexFindAll ":[0-9]+" (include "winnowd.config" (dict "root" . "key" "kafka.bootstrap")) -1 -}}
{{- $named = append $named (trimPrefix ":" . | int) -}}
{{- end -}}
{{- if $named }}{{ include "winnowd.egress" (dict "peers" .Values.networkPolicy.kafka "named" $named) }}{{ end -}}
{{- end -}}

{{- define "winnowd.egressCatalog" -}}
{{- if not (include "winnowd.usesSqlite" .) -}}
{{- $port := regexFind ":[0-9]+/" (include "winnowd.config" (dict "root" . "key" "catalog.url")) | trimAll ":/" | default "5432" -}}
{{ include "winnowd.egress" (dict "peers" .Values.networkPolicy.catalog "named" (list (int $port))) }}
{{- end -}}
{{- end -}}

{{/* The collector of traces, where there is one. */}}
{{- define "winnowd.egressTracing" -}}
{{- $endpoint := dig "tracing" "endpoint" "" (.Values.config | default dict) -}}
{{- if $endpoint -}}
{{- $usual := hasPrefix "http://" $endpoint | ternary "80" "443" -}}
{{- $port := regexFind ":[0-9]+" $endpoint | trimPrefix ":" | default $usual -}}
{{ include "winnowd.egress" (dict "peers" .Values.networkPolicy.tracing "named" (list (int $port))) }}
{{- end -}}
{{- end -}}

{{/* The registry of schemas, where there is one. */}}
{{- define "winnowd.egressRegistry" -}}
{{- $url := dig "documents" "registry" "url" "" (.Values.config | default dict) -}}
{{- if $url -}}
{{- $usual := hasPrefix "http://" $url | ternary "80" "443" -}}
{{- $port := regexFind ":[0-9]+" $url | trimPrefix ":" | default $usual -}}
{{ include "winnowd.egress" (dict "peers" .Values.networkPolicy.registry "named" (list (int $port))) }}
{{- end -}}
{{- end -}}

{{/* A store's own endpoint, if one is given, and whatever gives out the pod's credentials. */}}
{{- define "winnowd.egressStore" -}}
{{- if not (include "winnowd.usesFolder" .) -}}
{{- $options := dig "options" dict (.Values.config.sink | default dict) -}}
{{- $named := list 443 -}}
{{- range $option, $value := $options -}}
{{- if contains "endpoint" (lower $option) -}}
{{- $usual := hasPrefix "http://" (toString $value) | ternary "80" "443" -}}
{{- $port := regexFind ":[0-9]+" (toString $value) | trimPrefix ":" | default $usual -}}
{{- $named = append $named (int $port) -}}
{{- end -}}
{{- end -}}
{{ include "winnowd.egress" (dict "peers" .Values.networkPolicy.store "named" $named) }}
{{- end -}}
{{- end -}}
