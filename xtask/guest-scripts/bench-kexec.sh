# One hand-over by kexec-tools.

say "kexec-version $(kexec --version)"
say "payload image_bytes=$(stat -c %s /payload/Image) initrd_bytes=$(stat -c %s /payload/initrd)"
must kexec -l -c @OPTIONS@ /payload/Image --initrd=/payload/initrd \
    --command-line='@COMMAND_LINE@'
say executing
run kexec -e
finish fail 'kexec -e came back'
