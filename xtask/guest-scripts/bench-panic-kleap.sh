# One panic with a crash kernel that kleap has loaded.

say "payload image_bytes=$(stat -c %s /payload/Image) initrd_bytes=$(stat -c %s /payload/initrd)"
line=$(echo '@COMMAND_LINE@' | sed 's/kleap_lab.cpus=[0-9]*/kleap_lab.cpus=1/')
must kleap load --panic /payload/Image --initrd /payload/initrd @OPTIONS@ \
    --command-line "$line maxcpus=1 reset_devices"
say executing
echo c >/proc/sysrq-trigger
finish fail 'this kernel did not panic'
