/*
 * smtpload - closed-loop SMTP submission load generator.
 *
 * One thread, epoll, no dependency beyond libc:
 *
 *     cc -O2 -Wall -Wextra -o smtpload smtpload.c
 *
 * Every connection is a small state machine that sends one command, waits
 * for its reply, checks the reply code and moves on.  A wrong reply, a
 * broken connection or a reply that is missing when the time limit is
 * reached fails one message; the connection is then replaced.  Each failure
 * uses up one of the -n messages, so a run always ends.
 *
 * Result: one JSON line on stdout.  Latency is the time from MAIL to the
 * final 250 of that message; setup is the time from connect() to the reply
 * that allows the first MAIL (after AUTH when a user is given).
 *
 * With -I SECONDS no mail is sent: all connections are opened and
 * authenticated, the JSON line is printed, and the sessions are held idle
 * until SECONDS have passed or stdin reaches end of file.
 *
 * TLS is left out on purpose (it needs more than libc).
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REPLY_MAX = 4096, MAX_EVENTS = 256, MAX_RECIPIENTS = 1000, MAX_USERS = 100 };

/* What the next reply on a connection answers. */
enum step { GREETING, EHLO, AUTH, MAIL, RCPT, DATA, BODY, QUIT, IDLE };

static const struct {
    const char *name;
    int code;                   /* of a good reply; 0: no reply is expected */
} steps[] = {
    [GREETING] = { "greeting", 220 }, [EHLO] = { "EHLO", 250 },
    [AUTH] = { "AUTH", 235 },         [MAIL] = { "MAIL", 250 },
    [RCPT] = { "RCPT", 250 },         [DATA] = { "DATA", 354 },
    [BODY] = { "message", 250 },      [QUIT] = { "QUIT", 221 },
    [IDLE] = { "idle session", 0 },
};

struct connection {
    int fd;                     /* -1: slot not in use */
    enum step step;
    int batched;                /* replies still to come for a pipelined batch */
    int recipients_accepted;
    int in_message;             /* a message is charged to this connection */
    long messages_sent;         /* on this connection */
    int has_pipelining;
    int wants_write;            /* EPOLLOUT is armed */
    double connected_at;        /* connect() was called */
    double mail_at;             /* MAIL was queued */
    const char *auth_response;
    char *command;              /* unsent command bytes */
    size_t command_len, command_done;
    size_t body_left;           /* unsent bytes of the shared body */
    char reply[REPLY_MAX];
    size_t reply_len;
};

/* Options. */
static const char *host = "127.0.0.1";
static int port = 25;
static int connection_count = 1;
static long messages_per_connection = 1;
static long message_total = 1;
static size_t message_size = 2048;
static int recipient_count = 1;
static const char *user, *password;
static int user_count;          /* 0: the one user; else USER0, USER1 ... in turn */
static int use_pipelining;
static double time_limit = 60;
static double idle_seconds;

/* Run state. */
static int epoll_fd;
static struct sockaddr_in server;
static struct connection *connections;
static int open_connections, idle_connections;
static char *body;
static size_t body_len, command_size;
static char auth_responses[MAX_USERS][1024];
static long started, succeeded, failed, sessions, setup_count;
static double *latencies, *setups;
static double last_success;

static void die(const char *what)
{
    fprintf(stderr, "smtpload: %s: %s\n", what, strerror(errno));
    exit(2);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die("out of memory");
    return memory;
}

/* Builds the body all messages share, ended with CRLF "." CRLF. */
static void build_body(void)
{
    static const char header[] =
        "From: Bench Sender <sender@example.org>\r\n"
        "To: rcpt0@example.net\r\n"
        "Subject: load test message\r\n"
        "Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n"
        "Message-ID: <smtpload@example.org>\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        "\r\n"
        "..a line that starts with a dot is stuffed on the wire\r\n";
    static const char text[] =
        "The quick brown fox jumps over the lazy dog and runs on and on, 0123";
    size_t text_len = sizeof text - 1;

    body = allocate(1, sizeof header + message_size + sizeof "\r\n.\r\n");
    body_len = sizeof header - 1;
    memcpy(body, header, body_len);
    while (body_len + 2 < message_size) {   /* the last line may be shorter */
        size_t room = message_size - 2 - body_len;
        size_t n = room < text_len ? room : text_len;
        memcpy(body + body_len, text, n);
        memcpy(body + body_len + n, "\r\n", 2);
        body_len += n + 2;
    }
    memcpy(body + body_len, ".\r\n", 3);
    body_len += 3;
}

/* base64(NUL user NUL password) */
static void build_auth_response(char *out, const char *name)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char raw[512] = { 0 };
    size_t user_len = strlen(name), raw_len = user_len + strlen(password) + 2;

    if (raw_len > sizeof raw - 2)
        errno = E2BIG, die("user and password");
    memcpy(raw + 1, name, user_len);
    memcpy(raw + user_len + 2, password, strlen(password));
    for (size_t i = 0; i < raw_len; i += 3) {
        unsigned long group = raw[i] << 16 | raw[i + 1] << 8 | raw[i + 2];
        *out++ = digits[group >> 18];
        *out++ = digits[group >> 12 & 63];
        *out++ = i + 1 < raw_len ? digits[group >> 6 & 63] : '=';
        *out++ = i + 2 < raw_len ? digits[group & 63] : '=';
    }
}

static void build_auth_responses(void)
{
    char name[256];

    if (user_count == 0)
        build_auth_response(auth_responses[0], user);
    for (int i = 0; i < user_count; i++) {
        snprintf(name, sizeof name, "%s%d", user, i);
        build_auth_response(auth_responses[i], name);
    }
}

static void watch(struct connection *c, int wants_write)
{
    struct epoll_event event = { .data.ptr = c };

    if (c->wants_write == wants_write)
        return;
    c->wants_write = wants_write;
    event.events = EPOLLIN | (wants_write ? EPOLLOUT : 0);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void close_connection(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    open_connections--;
}

/* Charges the message in progress, or else one that was not begun yet. */
static void fail(struct connection *c, const char *why)
{
    int loses_message = c->in_message
        || (c->step != QUIT && started < message_total);

    if (loses_message) {
        if (failed < 5)
            fprintf(stderr, "smtpload: failure at %s: %.*s\n",
                    steps[c->step].name, (int)strcspn(why, "\r\n"), why);
        failed++;
        started += !c->in_message;
        c->in_message = 0;
    }
    close_connection(c);
}

static void open_connection(struct connection *c)
{
    struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.ptr = c };
    char *command = c->command;
    int one = 1;

    memset(c, 0, sizeof *c);
    c->command = command;
    c->auth_response = auth_responses[sessions % (user_count ? user_count : 1)];
    c->step = GREETING;
    c->wants_write = 1;
    c->connected_at = now();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    open_connections++;
    sessions++;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0
        && errno != EINPROGRESS) {
        fail(c, strerror(errno));
        return;
    }
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void queue_command(struct connection *c, const char *format, ...)
{
    va_list args;
    int n;

    if (c->command_done == c->command_len)
        c->command_done = c->command_len = 0;
    va_start(args, format);
    n = vsnprintf(c->command + c->command_len, command_size - c->command_len,
                  format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= command_size - c->command_len)
        errno = EOVERFLOW, die("command buffer");
    c->command_len += n;
}

/* Sends what is queued; returns 0 when the connection had to be failed. */
static int flush(struct connection *c)
{
    while (c->command_done < c->command_len || c->body_left) {
        int is_body = c->command_done == c->command_len;
        const char *data = is_body ? body + body_len - c->body_left
                                   : c->command + c->command_done;
        size_t length = is_body ? c->body_left
                                : c->command_len - c->command_done;
        ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            fail(c, strerror(errno));
            return 0;
        }
        if (is_body)
            c->body_left -= n;
        else
            c->command_done += n;
    }
    watch(c, c->command_done < c->command_len || c->body_left > 0);
    return 1;
}

/* Sends the command of the next step, unless a pipelined batch did. */
static void begin_step(struct connection *c, enum step step)
{
    c->step = step;
    if (c->batched > 0) {
        c->batched--;
        return;
    }
    switch (step) {
    case EHLO:  queue_command(c, "EHLO bench.example.org\r\n"); break;
    case AUTH:  queue_command(c, "AUTH PLAIN %s\r\n", c->auth_response); break;
    case MAIL:  queue_command(c, "MAIL FROM:<sender@example.org>\r\n"); break;
    case RCPT:  queue_command(c, "RCPT TO:<rcpt%d@example.net>\r\n",
                              c->recipients_accepted); break;
    case DATA:  queue_command(c, "DATA\r\n"); break;
    case BODY:  c->body_left = body_len; break;
    case QUIT:  queue_command(c, "QUIT\r\n"); break;
    default:    break;
    }
}

/* The session is free: next message, idle wait, or QUIT. */
static void begin_message_or_quit(struct connection *c)
{
    if (idle_seconds > 0) {
        c->step = IDLE;
        idle_connections++;
        return;
    }
    if (started >= message_total
        || c->messages_sent >= messages_per_connection) {
        begin_step(c, QUIT);
        return;
    }
    started++;
    c->in_message = 1;
    c->recipients_accepted = 0;
    c->mail_at = now();
    begin_step(c, MAIL);
    if (use_pipelining && c->has_pipelining) {
        for (int i = 0; i < recipient_count; i++)
            queue_command(c, "RCPT TO:<rcpt%d@example.net>\r\n", i);
        queue_command(c, "DATA\r\n");
        c->batched = recipient_count + 1;
    }
}

static void session_ready(struct connection *c)
{
    if (setup_count < message_total + connection_count)
        setups[setup_count++] = now() - c->connected_at;
    begin_message_or_quit(c);
}

/* One complete (possibly multi-line) reply has arrived. */
static void handle_reply(struct connection *c, const char *reply)
{
    if (atoi(reply) != steps[c->step].code) {
        fail(c, reply);
        return;
    }
    switch (c->step) {
    case GREETING: begin_step(c, EHLO); break;
    case AUTH:     session_ready(c); break;
    case MAIL:     begin_step(c, RCPT); break;
    case DATA:     begin_step(c, BODY); break;
    case QUIT:     close_connection(c); break;
    case IDLE:     break;
    case EHLO:
        c->has_pipelining = strcasestr(reply, "PIPELINING") != NULL;
        if (user)
            begin_step(c, AUTH);
        else
            session_ready(c);
        break;
    case RCPT:
        c->recipients_accepted++;
        begin_step(c, c->recipients_accepted < recipient_count ? RCPT : DATA);
        break;
    case BODY:
        last_success = now();
        latencies[succeeded++] = last_success - c->mail_at;
        c->messages_sent++;
        c->in_message = 0;
        begin_message_or_quit(c);
        break;
    }
}

/* Length of the complete reply at the start of the buffer, or 0. */
static size_t complete_reply(const char *data, size_t length)
{
    size_t start = 0;

    for (;;) {
        const char *newline = memchr(data + start, '\n', length - start);
        if (!newline)
            return 0;
        size_t next = newline + 1 - data;
        if (next - start < 5 || data[start + 3] != '-')
            return next;
        start = next;
    }
}

static void handle_input(struct connection *c)
{
    size_t length;
    ssize_t n = recv(c->fd, c->reply + c->reply_len,
                     sizeof c->reply - 1 - c->reply_len, 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        if (c->step == IDLE)
            idle_connections--;
        fail(c, n < 0 ? strerror(errno) : "connection closed by server");
        return;
    }
    c->reply_len += n;
    while ((length = complete_reply(c->reply, c->reply_len)) > 0) {
        char saved = c->reply[length];
        c->reply[length] = '\0';
        handle_reply(c, c->reply);
        if (c->fd < 0)
            return;
        c->reply[length] = saved;
        c->reply_len -= length;
        memmove(c->reply, c->reply + length, c->reply_len);
    }
    if (c->reply_len == sizeof c->reply - 1)
        fail(c, "reply too long");
    else
        flush(c);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(const double *sorted, long count, double fraction)
{
    long index = (long)(fraction * (count - 1) + 0.5);
    return count ? sorted[index] * 1000 : 0;
}

static void print_result(double start)
{
    double end = succeeded ? last_success : now();
    double seconds = end - start;

    qsort(latencies, succeeded, sizeof *latencies, compare_doubles);
    qsort(setups, setup_count, sizeof *setups, compare_doubles);
    printf("{\"messages\": %ld, \"failures\": %ld, \"seconds\": %.6f, "
           "\"messages_per_second\": %.2f, \"p50_ms\": %.3f, "
           "\"p95_ms\": %.3f, \"p99_ms\": %.3f, \"sessions\": %ld, "
           "\"setup_p50_ms\": %.3f, \"setup_p99_ms\": %.3f, \"idle\": %d}\n",
           succeeded, failed, seconds, seconds > 0 ? succeeded / seconds : 0,
           percentile_ms(latencies, succeeded, 0.50),
           percentile_ms(latencies, succeeded, 0.95),
           percentile_ms(latencies, succeeded, 0.99), sessions,
           percentile_ms(setups, setup_count, 0.50),
           percentile_ms(setups, setup_count, 0.99),
           idle_connections);
    fflush(stdout);
}

/* Runs until all messages are done, all sessions are idle, or time is up. */
static void run(double deadline)
{
    struct epoll_event events[MAX_EVENTS];

    for (;;) {
        int all_done = succeeded + failed >= message_total;

        for (int i = 0; i < connection_count; i++) {
            struct connection *c = &connections[i];
            if (c->fd >= 0 && all_done && c->step < MAIL)
                close_connection(c);    /* nothing is left for it to send */
            if (c->fd < 0 && started + idle_connections < message_total)
                open_connection(c);
        }
        if (!open_connections || (idle_seconds > 0
                                  && idle_connections == open_connections))
            return;

        double left = deadline - now();
        int n = left <= 0 ? 0
            : epoll_wait(epoll_fd, events, MAX_EVENTS, (int)(left * 1000) + 1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        if (n == 0) {
            for (int i = 0; i < connection_count; i++)
                if (connections[i].fd >= 0 && connections[i].step != IDLE)
                    fail(&connections[i], "time limit reached");
            failed += message_total > started ? message_total - started : 0;
            return;
        }
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if ((events[i].events & EPOLLOUT) && !flush(c))
                continue;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                handle_input(c);
        }
    }
}

static void usage(void)
{
    fprintf(stderr,
        "usage: smtpload [-h IPv4] [-p port] [-c connections]\n"
        "                [-m messages-per-connection] [-n total-messages]\n"
        "                [-s bytes] [-r recipients] [-u user -w password [-U users]]\n"
        "                [-x (pipelining)] [-t seconds] [-I idle-seconds]\n");
    exit(2);
}

static void parse_options(int argc, char **argv)
{
    int option;

    while ((option = getopt(argc, argv, "h:p:c:m:n:s:r:u:U:w:xt:I:")) != -1)
        switch (option) {
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'c': connection_count = atoi(optarg); break;
        case 'm': messages_per_connection = atol(optarg); break;
        case 'n': message_total = atol(optarg); break;
        case 's': message_size = strtoul(optarg, NULL, 10); break;
        case 'r': recipient_count = atoi(optarg); break;
        case 'u': user = optarg; break;
        case 'U': user_count = atoi(optarg); break;
        case 'w': password = optarg; break;
        case 'x': use_pipelining = 1; break;
        case 't': time_limit = atof(optarg); break;
        case 'I': idle_seconds = atof(optarg); break;
        default: usage();
        }
    if (idle_seconds > 0)
        message_total = connection_count;
    if (optind != argc || port < 1 || port > 65535 || connection_count < 1
        || messages_per_connection < 1 || message_total < 1 || time_limit <= 0
        || recipient_count < 1 || recipient_count > MAX_RECIPIENTS
        || !user != !password || user_count < 0 || user_count > MAX_USERS)
        usage();
}

int main(int argc, char **argv)
{
    double start;

    parse_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    server.sin_family = AF_INET;
    server.sin_port = htons(port);
    if (inet_pton(AF_INET, host, &server.sin_addr) != 1)
        usage();
    build_body();
    if (user)
        build_auth_responses();
    command_size = sizeof auth_responses[0] + 64 + recipient_count * 48;
    connections = allocate(connection_count, sizeof *connections);
    latencies = allocate(message_total, sizeof *latencies);
    setups = allocate(message_total + connection_count, sizeof *setups);
    for (int i = 0; i < connection_count; i++) {
        connections[i].fd = -1;
        connections[i].command = allocate(1, command_size);
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1");

    start = now();
    run(start + time_limit);
    print_result(start);
    if (idle_seconds > 0) {
        struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
        poll(&input, 1, (int)(idle_seconds * 1000));
    }
    return failed ? 1 : 0;
}
