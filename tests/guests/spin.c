// Says that it runs, then never makes a system call again.
#include <unistd.h>

int main(void) {
    if (write(1, "ready\n", 6) != 6) return 1;
    for (volatile unsigned long i = 0;; i++) {
    }
}
