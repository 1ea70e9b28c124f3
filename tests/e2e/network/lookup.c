// Looks the names up that are its arguments, by the C library's own resolver.
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        struct addrinfo *found, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
        int error = getaddrinfo(argv[i], "80", &hints, &found);
        char text[99] = "absent";
        if (!error) inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text);
        printf("%s %s\n", argv[i], error && error != EAI_NONAME ? gai_strerror(error) : text);
    }
    return 0;
}
