// Sends each message back in capitals.
//
//     cc -O2 -I"$(python3 -c 'import kvmlet; print(kvmlet.get_include())')" echo.c -o echo
//
// On its own it takes messages from standard input, each behind its length:
//
//     printf '\5\0\0\0hello' | ./echo | od -c
#include <ctype.h>
#include <kvmlet.h>

static char message[1 << 20];

int main(void) {
    ssize_t len;
    while ((len = kvmlet_receive(message, sizeof message)) >= 0) {
        for (ssize_t i = 0; i < len; i++) message[i] = (char)toupper((unsigned char)message[i]);
        if (kvmlet_send(message, (size_t)len) != 0) return 1;
    }
    return errno == ENODATA ? 0 : 1;
}
