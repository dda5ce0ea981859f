package child

import "syscall"

// dieWithUs has the kernel send SIGTERM to the program when this process is killed: nobody would renew its credentials.
func dieWithUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }
