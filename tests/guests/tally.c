// A storage by kvmlet.h: each question is a number, which is added to a sum; the answer is the sum. Natively it takes
// them from descriptor 0. "name" asks the storage of that name instead, and says what came of it.
#include "guest.h"

#include <kvmlet.h>

static int asks(const char *name) {
    char answer[16];
    ssize_t len = kvmlet_ask(name, "1", 1, answer, sizeof answer);
    if (len < 0) printf("no answer: %s\n", errno_name(errno));
    else printf("%.*s\n", (int)len, answer);
    static char large[KVMLET_MESSAGE_MAX + 1u];
    len = kvmlet_ask(name, large, sizeof large, answer, sizeof answer);
    printf("too long: %d\n", len == -1 && errno == EMSGSIZE);
    return 0;
}

int main(int argc, char **argv) {
    char text[32];
    long sum = 0;
    ssize_t len;
    if (argc > 1) return asks(argv[1]);
    while ((len = kvmlet_receive(text, sizeof text - 1)) >= 0) {
        text[len] = 0;
        sum += strtol(text, NULL, 10);
        int printed = snprintf(text, sizeof text, "%ld", sum);
        if (kvmlet_send(text, (size_t)printed) != 0) return 2;
    }
    return errno == ENODATA ? 0 : 3;
}
