// Messages by kvmlet.h where nobody serves them: from descriptor 0 and to descriptor 1. Reports go to
// standard error.
#include "guest.h"

#include <kvmlet.h>

static int hook_runs;
static void hook(void *argument) { hook_runs += *(int *)argument; }

int main(void) {
    static char message[70000];
    static int one = 1;
    ssize_t len;
    unsigned long count = 0;
    kvmlet_on_fork(hook, &one);
    fprintf(stderr, "generation %llu\n", (unsigned long long)kvmlet_generation());
    kvmlet_check_fork();
    for (;;) {
        len = kvmlet_receive(message, 5);
        if (len < 0 && errno == EMSGSIZE) {
            ssize_t needed = kvmlet_next_length();
            fprintf(stderr, "too long: %zd\n", needed);
            if (needed < 0 || (size_t)needed > sizeof message) break;
            len = kvmlet_receive(message, sizeof message);
        }
        if (len < 0) break;
        count++;
        for (ssize_t i = 0; i < len / 2; i++) {
            char first = message[i];
            message[i] = message[len - 1 - i];
            message[len - 1 - i] = first;
        }
        if (kvmlet_send(message, (size_t)len) != 0) return 2;
    }
    fprintf(stderr, "end: %s after %lu, hooks %d\n", errno == EBADMSG ? "EBADMSG" : errno_name(errno), count, hook_runs);
    errno = 0;
    int sent = kvmlet_send(message, KVMLET_MESSAGE_MAX + 1u);
    fprintf(stderr, "too long to send: %d %d\n", sent, errno == EMSGSIZE);
    return 0;
}
