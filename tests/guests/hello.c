// The smallest useful program.
#include <stdio.h>

int main(int argc, char **argv) {
    printf("hello, world (%d)\n", argc);
    for (int i = 1; i < argc; i++) printf("%s\n", argv[i]);
    return 0;
}
