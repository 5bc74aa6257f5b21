/*
 * smtpsink - SMTP server that accepts and discards all mail.
 *
 *     cc -O2 -Wall -Wextra -o smtpsink smtpsink.c
 *     smtpsink [-q] PORT
 *
 * One thread, epoll, loopback only, no authentication.  Message bodies are
 * scanned with memmem() instead of byte by byte, so that the sink is never
 * the slowest part of a measurement.  The extra command XSTAT replies
 * "250 messages=N bytes=N recipients=N": totals since the start, body bytes
 * as received, recipients of messages that are complete.  A benchmark uses
 * them to see when all mail has arrived.
 *
 * With -q received data is acknowledged at once.  Without it the kernel may
 * delay acknowledgements by 40 ms, as at any real next hop; a client that
 * sends a command in several small writes without TCP_NODELAY then waits.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CARRY_MAX = 2048, READ_SIZE = 256 * 1024, OUT_SIZE = 64 * 1024,
       MAX_EVENTS = 256, BACKLOG = 4096 };

static const char end_of_data[] = "\r\n.\r\n";
enum { END_LENGTH = sizeof end_of_data - 1 };

struct session {
    int fd;
    int in_data;
    int recipients;             /* of the transaction in progress */
    size_t carry_length;        /* unprocessed input from the last read */
    char carry[CARRY_MAX];
};

static int quick_ack;
static unsigned long messages, body_bytes, recipients;
static char input[CARRY_MAX + READ_SIZE];
static char output[OUT_SIZE];
static size_t output_length;

static void die(const char *what)
{
    fprintf(stderr, "smtpsink: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void reply(const char *text)
{
    size_t length = strlen(text);

    if (output_length + length <= sizeof output) {
        memcpy(output + output_length, text, length);
        output_length += length;
    }
}

/* Executes one command line; returns 0 when the session ends. */
static int handle_command(struct session *s, const char *line)
{
    if (strncasecmp(line, "MAIL", 4) == 0
        || strncasecmp(line, "RSET", 4) == 0) {
        s->recipients = 0;
        reply("250 Ok\r\n");
    } else if (strncasecmp(line, "NOOP", 4) == 0
               || strncasecmp(line, "HELO", 4) == 0) {
        reply("250 Ok\r\n");
    } else if (strncasecmp(line, "RCPT", 4) == 0) {
        s->recipients++;
        reply("250 Ok\r\n");
    } else if (strncasecmp(line, "DATA", 4) == 0) {
        s->in_data = 1;
        reply("354 Go ahead\r\n");
    } else if (strncasecmp(line, "EHLO", 4) == 0) {
        reply("250-sink.example.org\r\n250-PIPELINING\r\n250-8BITMIME\r\n"
              "250 SIZE 0\r\n");
    } else if (strncasecmp(line, "QUIT", 4) == 0) {
        reply("221 Bye\r\n");
        return 0;
    } else if (strncasecmp(line, "XSTAT", 5) == 0) {
        char text[128];
        snprintf(text, sizeof text,
                 "250 messages=%lu bytes=%lu recipients=%lu\r\n",
                 messages, body_bytes, recipients);
        reply(text);
    } else {
        reply("502 Command not implemented\r\n");
    }
    return 1;
}

/*
 * Consumes what is complete in data; *used tells how much.  While a body is
 * being received, its last bytes stay in the carry buffer so that a split
 * end marker is found.  The CRLF that ends the DATA command is kept as the
 * first two body bytes, so that an empty body ends like any other.
 */
static int handle_data(struct session *s, char *data, size_t length,
                       size_t *used)
{
    size_t position = 0;
    int keep = 1;

    while (keep) {
        char *rest = data + position;
        size_t left = length - position;

        if (s->in_data) {
            char *end = memmem(rest, left, end_of_data, END_LENGTH);
            if (!end) {
                size_t tail = left < END_LENGTH - 1 ? left : END_LENGTH - 1;
                body_bytes += left - tail;
                position += left - tail;
                break;
            }
            body_bytes += end - rest;   /* the leading CRLF for the last one */
            position += end - rest + END_LENGTH;
            messages++;
            recipients += s->recipients;
            s->recipients = 0;
            s->in_data = 0;
            reply("250 Ok\r\n");
        } else {
            char *newline = memchr(rest, '\n', left);
            if (!newline)
                break;
            *newline = '\0';
            keep = handle_command(s, rest);
            *newline = '\n';
            position += newline + 1 - rest;
            if (s->in_data && newline > rest && newline[-1] == '\r')
                position -= 2;
        }
    }
    *used = position;
    return keep;
}

/* Reads and answers once; returns 0 when the session is over. */
static int handle_readable(struct session *s)
{
    size_t length, used;
    int keep;
    ssize_t n;

    n = recv(s->fd, input + s->carry_length, READ_SIZE, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 1;
    if (n <= 0)
        return 0;
    if (quick_ack)              /* not a lasting setting: renew it */
        setsockopt(s->fd, IPPROTO_TCP, TCP_QUICKACK, &quick_ack,
                   sizeof quick_ack);
    memcpy(input, s->carry, s->carry_length);
    length = s->carry_length + n;
    keep = handle_data(s, input, length, &used);
    s->carry_length = length - used;
    if (s->carry_length > CARRY_MAX)
        return 0;               /* absurdly long command line */
    memcpy(s->carry, input + used, s->carry_length);
    if (output_length && send(s->fd, output, output_length, MSG_NOSIGNAL)
                         != (ssize_t)output_length)
        keep = 0;
    output_length = 0;
    return keep;
}

static void accept_session(int epoll_fd, int listener)
{
    static const char greeting[] = "220 sink.example.org ESMTP\r\n";
    struct epoll_event event = { .events = EPOLLIN };
    struct session *s;
    int one = 1, fd;

    fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    s = calloc(1, sizeof *s);
    if (!s)
        die("out of memory");
    s->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    event.data.ptr = s;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
    send(fd, greeting, sizeof greeting - 1, MSG_NOSIGNAL);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
    struct epoll_event events[MAX_EVENTS];
    int one = 1, listener, epoll_fd;

    quick_ack = argc == 3 && strcmp(argv[1], "-q") == 0;
    if (argc != 2 + quick_ack) {
        fprintf(stderr, "usage: smtpsink [-q] PORT\n");
        return 2;
    }
    address.sin_port = htons(atoi(argv[argc - 1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (listen(listener, BACKLOG) < 0)
        die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");

    for (;;) {
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct session *s = events[i].data.ptr;
            if (!s) {
                accept_session(epoll_fd, listener);
            } else if (!handle_readable(s)) {
                close(s->fd);
                free(s);
            }
        }
    }
}
