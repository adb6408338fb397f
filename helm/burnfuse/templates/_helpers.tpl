{{- define "burnfuse.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What identifies the pods: never changes in the life of a release. */ -}}
{{- define "burnfuse.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "burnfuse.labels" -}}
{{ include "burnfuse.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "burnfuse.config" -}}
burnfuse.yaml: |
  {{- toYaml . | nindent 2 }}
{{- end -}}

{{- /*
What the topics job runs with: the worker's values, and over them what `topics` says. As YAML, for `fromYaml`.
*/ -}}
{{- define "burnfuse.topics" -}}
config:
  {{- mergeOverwrite (deepCopy .Values.config) (deepCopy .Values.topics.config) | toYaml | nindent 2 }}
existingSecret: {{ .Values.topics.existingSecret | default .Values.existingSecret | quote }}
tls: {{ .Values.topics.tls.existingSecret | default .Values.tls.existingSecret | quote }}
token: {{ .Values.topics.token.existingSecret | default .Values.token.existingSecret | quote }}
{{- end -}}

{{- /* Refuses values that cannot work for want of a Secret, before anything is installed. */ -}}
{{- define "burnfuse.checks" -}}
{{- include "burnfuse.check" (dict "config" .Values.config "existingSecret" .Values.existingSecret
  "tls" .Values.tls.existingSecret "token" .Values.token.existingSecret "extraEnv" .Values.extraEnv "where" "") -}}
{{- if and (dig "actions" "slack" "enabled" false .Values.config) (not (or .Values.existingSecret .Values.extraEnv)) -}}
{{- fail "config.actions.slack.enabled needs a bot token: set existingSecret to a Secret with the key slack-token" -}}
{{- end -}}
{{- if .Values.topics.enabled -}}
{{- $own := include "burnfuse.topics" . | fromYaml -}}
{{- include "burnfuse.check" (merge (dict "extraEnv" .Values.extraEnv "where" "topics.") $own) -}}
{{- end -}}
{{- end -}}

{{- /*
The same of one configuration. Takes `config`, `existingSecret`, `tls` and `token`
(names of Secrets), `extraEnv`, and `where` the names are set.
*/ -}}
{{- define "burnfuse.check" -}}
{{- $kafka := .config.kafka -}}
{{- $secrets := or .existingSecret .extraEnv -}}
{{- if and (dig "sasl" "username" "" $kafka) (not $secrets) -}}
{{- fail (printf "config.kafka.sasl.username needs a password: set %sexistingSecret to a Secret with the key kafka-password" .where) -}}
{{- end -}}
{{- if and (dig "sasl" "client_id" "" $kafka) (not $secrets) -}}
{{- fail (printf "config.kafka.sasl.client_id needs its secret: set %sexistingSecret to a Secret with the key kafka-client-secret" .where) -}}
{{- end -}}
{{- $files := dict
  "tls.ca_file" (dig "tls" "ca_file" "" $kafka)
  "tls.certificate_file" (dig "tls" "certificate_file" "" $kafka)
  "tls.key_file" (dig "tls" "key_file" "" $kafka)
  "sasl.token_ca_file" (dig "sasl" "token_ca_file" "" $kafka)
  "sasl.token_file" (dig "sasl" "token_file" "" $kafka) -}}
{{- range $key, $file := $files -}}
{{- range $folder := list "tls" "token" -}}
{{- if and $file (hasPrefix (printf "/run/secrets/burnfuse/%s/" $folder) $file) (not (get $ $folder)) -}}
{{- fail (printf "config.kafka.%s is %s: set %s%s.existingSecret to the Secret that holds it" $key $file $.where $folder) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
What the pods of the worker and of the topics job share: a pod specification that ends within its container, so
that the caller can add to it. Takes `root` (the chart's scope), `configMap`, `command`, `secrets` (keys that become
variables), and the names of the Secrets: `existingSecret`, `tls`, `token`.
*/ -}}
{{- define "burnfuse.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: config
    configMap:
      name: {{ .configMap }}
  - name: state
    emptyDir: {}
  - name: tmp
    emptyDir: {}
  {{- range $folder := list "tls" "token" }}
  {{- with get $ $folder }}
  - name: {{ $folder }}
    secret:
      secretName: {{ . }}
      # For the group of podSecurityContext.fsGroup.
      defaultMode: 0440
  {{- end }}
  {{- end }}
  {{- with .root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
containers:
  - name: {{ .command }}
    image: {{ printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion) | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: [{{ .command }}, --config, /etc/burnfuse/burnfuse.yaml]
    securityContext:
      {{- toYaml .root.Values.securityContext | nindent 6 }}
    resources:
      {{- toYaml .root.Values.resources | nindent 6 }}
    {{- if or .existingSecret .root.Values.extraEnv }}
    env:
      {{- if .existingSecret }}
      {{- range .secrets }}
      - name: BURNFUSE_{{ . | upper | replace "-" "_" }}
        valueFrom:
          secretKeyRef:
            name: {{ $.existingSecret }}
            key: {{ . }}
            optional: true
      {{- end }}
      {{- end }}
      {{- with .root.Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
    volumeMounts:
      - name: config
        mountPath: /etc/burnfuse
        readOnly: true
      - name: state
        mountPath: /var/lib/burnfuse
      - name: tmp
        mountPath: /tmp
      # Whole folders, not single files: what a Secret's owner renews comes into running pods, too.
      {{- range $folder := list "tls" "token" }}
      {{- if get $ $folder }}
      - name: {{ $folder }}
        mountPath: /run/secrets/burnfuse/{{ $folder }}
        readOnly: true
      {{- end }}
      {{- end }}
      {{- with .root.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}
