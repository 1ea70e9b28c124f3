// Memory that is written or protected by order: a line of input each.
#include "guest.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#define LEN (32 * 4096)

static char memory[LEN] __attribute__((aligned(4096)));
static sigjmp_buf back;

static void on_fault(int signo) {
    (void)signo;
    siglongjmp(back, 1);
}

int main(void) {
    char order[32];
    struct sigaction action = {.sa_handler = on_fault};
    NEED(sigaction(SIGSEGV, &action, NULL) == 0);
    memset(memory, 1, LEN);
    puts("ready");
    fflush(stdout);
    while (fgets(order, sizeof order, stdin)) {
        if (order[0] == 'p') {
            NEED(mprotect(memory, LEN, PROT_READ) == 0);
            puts("protected");
        } else {
            volatile int faults = 0;
            for (volatile int at = 0; at < LEN; at += 4096) {
                if (sigsetjmp(back, 1)) faults++;
                else *(volatile char *)(memory + at) = 2;
            }
            printf("%d faults\n", faults);
        }
        fflush(stdout);
    }
    return 0;
}
