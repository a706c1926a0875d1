# One hand-over by kleap.

say "payload image_bytes=$(stat -c %s /payload/Image) initrd_bytes=$(stat -c %s /payload/initrd)"
must kleap load /payload/Image --initrd /payload/initrd --strategy @STRATEGY@ \
    --command-line '@COMMAND_LINE@'
say executing
run kleap exec
finish fail 'kleap exec came back'
