/*
 * load: opens subscribers (WebSocket or Server-Sent Events), publishes events by POST, and checks and measures every
 * delivery.  One process, epoll.  Prints one JSON object; exits with 0 if everyone got everything, once and in order.
 */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { INPUT = 1 << 22, TURN = 1024 };

struct plan plan = {.port = 8080, .accounts = 1, .subscribers = 1, .publishers = 1, .batch = 1, .bytes = 100, .window = 512,
                    .patience = 10, .settle = 0.5, .prefix = "b", .pids = "", .header = ""};
static int poller, ticker = -1, opening, opened, failed;
static struct conn *subscribers, *publishers;
static long progress, due;
static char *padding;

/* Connections */

static void hang_up(struct conn *c) {
    if (c->fd >= 0)
        close(c->fd);
    free(c->rest);
    free(c->out);
    *c = (struct conn){.fd = -1, .account = c->account, .publishes = c->publishes, .received = c->received};
}

static void lose(struct conn *c) {
    if (!c->publishes) {
        tally.closed++;
        opening -= !c->open;
    } else if (c->busy)
        tally.refused += plan.batch;
    hang_up(c);
}

static void watch(struct conn *c, int how, bool writable) {
    struct epoll_event event = {.events = writable ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, how, c->fd, &event);
}

static void dial(struct conn *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)plan.port)};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0 || (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS)) {
        perror("connect");
        exit(3);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(c, EPOLL_CTL_ADD, false);
}

/* Writes what it can now, and the rest when the socket is ready for it. */
void speak(struct conn *c, const void *bytes, size_t size) {
    ssize_t took = c->out ? 0 : send(c->fd, bytes, size, MSG_NOSIGNAL);
    if (took < 0)
        took = 0; /* not connected yet, or full; if it is broken, reading will tell */
    if ((size_t)took == size)
        return;
    size -= (size_t)took;
    c->out = realloc(c->out, c->out_size + size);
    memcpy(c->out + c->out_size, (const char *)bytes + took, size);
    c->out_size += size;
    watch(c, EPOLL_CTL_MOD, true);
}

static void speak_on(struct conn *c) {
    ssize_t took = send(c->fd, c->out + c->out_at, c->out_size - c->out_at, MSG_NOSIGNAL);
    if (took > 0 && (c->out_at += (size_t)took) == c->out_size) {
        free(c->out);
        c->out = NULL;
        c->out_size = c->out_at = 0;
        watch(c, EPOLL_CTL_MOD, false);
    }
}

/* HTTP, as much of it as these servers answer with */

static bool has_header(const char *head, const char *end, const char *line) {
    const char *found = strcasestr(head, line);
    return found && found < end;
}

/* The size of the whole answer at the beginning of `text`, or 0 if it is not all there. */
static size_t answer_size(const char *text, size_t size) {
    const char *end = strstr(text, "\r\n\r\n");
    if (!end)
        return 0;
    size_t head = (size_t)(end + 4 - text), body = 0;
    const char *length = strcasestr(text, "\r\ncontent-length:");
    if (has_header(text, end, "\r\ntransfer-encoding: chunked")) {
        const char *last = strstr(end + 2, "\r\n0\r\n\r\n");
        if (!last)
            return 0;
        body = (size_t)(last + 7 - (end + 4));
    } else if (length && length < end)
        body = (size_t)atol(length + 17);
    return head + body <= size ? head + body : 0;
}

static size_t read_answer(struct conn *c, const char *text, size_t size) {
    size_t whole = answer_size(text, size);
    if (!whole)
        return 0;
    bool accepted = text[9] == '2', close_it = has_header(text, strstr(text, "\r\n\r\n"), "\r\nconnection: close");
    if (!accepted && !tally.refused)
        fprintf(stderr, "refused: %.300s\n", text);
    *(accepted ? &tally.accepted : &tally.refused) += plan.batch;
    note(&tally.answers, now() - c->posted);
    c->busy = false;
    if (close_it)
        hang_up(c);
    return whole;
}

static size_t read_opening(struct conn *c, const char *text) {
    const char *end = strstr(text, "\r\n\r\n");
    if (!end)
        return 0;
    if (strncmp(text + 9, plan.mode == SSE ? "200" : "101", 3)) {
        if (!failed++)
            fprintf(stderr, "not subscribed: %.300s\n", text);
        lose(c);
        return 0;
    }
    c->chunked = has_header(text, end, "\r\ntransfer-encoding: chunked");
    c->open = true;
    opened++;
    opening--;
    return (size_t)(end + 4 - text);
}

static void keep_rest(struct conn *c, const unsigned char *bytes, size_t size) {
    if (size > c->rest_size || !size) {
        free(c->rest);
        c->rest = size ? malloc(size) : NULL;
    }
    if (size)
        memcpy(c->rest, bytes, size);
    c->rest_size = size;
}

/* Everything that has come on this connection.  Most have no rest, so one buffer does for all. */
static void listen_to(struct conn *c) {
    static unsigned char input[INPUT + 1];
    size_t size = c->rest_size, at = 0;
    bool closing = false;
    if (size)
        memcpy(input, c->rest, size);
    ssize_t got = recv(c->fd, input + size, INPUT - size, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            lose(c);
        return;
    }
    progress++;
    size += (size_t)got;
    input[size] = 0;
    if (c->publishes)
        at = read_answer(c, (char *)input, size);
    else {
        if (!c->open)
            at = read_opening(c, (char *)input);
        if (c->open) {
            size_t left = size - at;
            size_t done = plan.mode == SSE ? read_sse(c, input + at, &left) : read_websocket(c, input + at, left, &closing);
            size = at + left;
            at += done;
        }
    }
    if (closing)
        lose(c);
    if (c->fd >= 0)
        keep_rest(c, input + at, size - at);
}

static void turn(int milliseconds) {
    struct epoll_event events[TURN];
    int count = epoll_wait(poller, events, TURN, milliseconds);
    for (int i = 0; i < count; i++) {
        struct conn *c = events[i].data.ptr;
        uint64_t ticks;
        if (!c) {
            if (read(ticker, &ticks, sizeof ticks) == sizeof ticks)
                due += (long)ticks;
        } else if (c->fd >= 0) {
            if (events[i].events & EPOLLOUT && c->out)
                speak_on(c);
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                listen_to(c);
        }
    }
}

static void idle(double seconds) {
    for (double end = now() + seconds; now() < end;)
        turn(20);
}

/* Subscribing */

static void subscribe(struct conn *c, const char *cursor) {
    char request[1024];
    const char *wish = plan.mode == SSE ? "Accept: text/event-stream"
                                        : "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    int size = snprintf(request, sizeof request, "GET /events/%s%d%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n%s\r\n", plan.prefix,
                        c->account, cursor ? "?after=" : "", cursor ? cursor : "", plan.port, wish, plan.header);
    dial(c);
    opening++;
    speak(c, request, (size_t)size);
}

/* Opens `each` subscribers of every account, `plan.window` of them under way at a time. */
static void open_subscribers(int each, bool resume) {
    int count = each * plan.accounts;
    opened = 0;
    double moved = now();
    subscribers = calloc((size_t)count + 1, sizeof *subscribers);
    for (int i = 0; i < count; i++) {
        subscribers[i] = (struct conn){.account = i % plan.accounts, .received = resume};
        subscribe(&subscribers[i], resume ? first_cursor(i % plan.accounts) : NULL);
        if (i % 64 == 63)
            turn(0);
        for (long before = progress; opening >= plan.window && now() - moved < plan.patience; before = progress) {
            turn(10);
            moved = progress == before ? moved : now();
        }
    }
    for (long before = progress; opening && now() - moved < plan.patience; before = progress) {
        turn(10);
        moved = progress == before ? moved : now();
    }
}

/* Publishing */

static void post(struct conn *c, long first, double time) {
    static char *body, *request;
    size_t room = (size_t)plan.batch * (size_t)(plan.bytes + 64) + 1024;
    if (!body) {
        body = malloc(room);
        request = malloc(room + 1024);
    }
    int size = 0;
    for (long event = first; event < first + plan.batch; event++) {
        char mark[48];
        int length = snprintf(mark, sizeof mark, "@@%d:%08ld@@", plan.run, event);
        int pad = plan.bytes > length ? plan.bytes - length : 0;
        size += snprintf(body + size, room - (size_t)size, "{\"data\":\"%s%.*s\"}%s", mark, pad, padding, plan.batch > 1 ? "\n" : "");
        write_sent(event, time);
    }
    int whole = snprintf(request, room + 1024,
                         "POST /hooks/%s%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/%s\r\n%sContent-Length: %d\r\n\r\n%s",
                         plan.prefix, account_of(first), plan.port, plan.batch > 1 ? "x-ndjson" : "json", plan.header, size, body);
    if (c->fd < 0)
        dial(c);
    c->busy = true;
    c->posted = time;
    speak(c, request, (size_t)whole);
}

static void publish_what_is_due(double began) {
    static bool late;
    for (int i = 0; i < plan.publishers && tally.published < plan.events; i++) {
        if (plan.one_by_one && tally.outstanding)
            return;
        if (plan.rate > 0 && tally.published >= due) {
            late = false;
            return;
        }
        if (publishers[i].busy)
            continue;
        /* What had to wait for a publisher counts from when it was due: a slow server must not slow down the clock. */
        double time = late ? began + (double)tally.published / plan.rate : now();
        post(&publishers[i], tally.published, time);
    }
    late = plan.rate > 0 && tally.published < due;
}

static bool all_done(void) {
    return tally.published >= plan.events && tally.accepted + tally.refused >= plan.events && !tally.outstanding;
}

static void start_ticking(void) {
    if (plan.rate <= 0)
        return;
    long ns = (long)(1e9 * plan.batch / plan.rate);
    struct itimerspec every = {.it_interval = {ns / 1000000000, ns % 1000000000}, .it_value = {ns / 1000000000, ns % 1000000000}};
    struct epoll_event event = {.events = EPOLLIN};
    ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(ticker, 0, &every, NULL);
    epoll_ctl(poller, EPOLL_CTL_ADD, ticker, &event);
}

/* Publishes until all events are delivered, or nothing moves any more. */
static double publish(void) {
    publishers = calloc((size_t)plan.publishers, sizeof *publishers);
    for (int i = 0; i < plan.publishers; i++) {
        publishers[i] = (struct conn){.publishes = true};
        dial(&publishers[i]);
    }
    idle(0.05);
    double began = now(), moved = began;
    start_ticking();
    while (!all_done()) {
        long before = progress;
        if (plan.seconds > 0 && now() - began > plan.seconds && tally.published && tally.published < plan.events)
            plan.events = tally.published;
        publish_what_is_due(began);
        turn(50);
        if (progress != before)
            moved = now();
        else if (now() - moved > plan.patience)
            break;
    }
    return now() - began;
}

/* Running and reporting */

static void number(const char *name, double value) {
    printf("\"%s\":%.6g,", name, value);
}

static void report_opening(double seconds, double cpu, long rss) {
    number("subscribers", (double)opened);
    number("subscribers_wanted", (double)plan.accounts * plan.subscribers);
    number("connect_seconds", seconds);
    number("connects_per_s", opened / (seconds > 0 ? seconds : 1));
    number("connect_us", opened ? cpu * 1e6 / opened : 0);
    number("kib_each", opened ? (double)rss / opened : 0);
}

static long deliveries_wanted(void) {
    return plan.resume ? (long)plan.accounts * plan.subscribers * plan.resume : tally.published * plan.subscribers;
}

static bool report(double began, double seconds, double cpu, double client) {
    long missing = deliveries_wanted() - tally.delivered;
    number("began", began);
    number("seconds", seconds);
    number("events", (double)tally.published);
    number("refused", (double)tally.refused);
    number("events_per_s", (double)tally.accepted / seconds);
    number("deliveries", (double)tally.delivered);
    number("deliveries_per_s", (double)tally.delivered / seconds);
    number("server_cpu", cpu);
    number("client_cpu", client);
    number("us_per_delivery", tally.delivered ? cpu * 1e6 / (double)tally.delivered : 0);
    number("us_per_event", tally.accepted ? cpu * 1e6 / (double)tally.accepted : 0);
    number("p50_ms", quantile(&tally.each, 0.5));
    number("p99_ms", quantile(&tally.each, 0.99));
    number("last_p50_ms", quantile(&tally.last, 0.5));
    number("last_p99_ms", quantile(&tally.last, 0.99));
    number("answer_p50_ms", quantile(&tally.answers, 0.5));
    number("answer_p99_ms", quantile(&tally.answers, 0.99));
    number("rss_kib", (double)server_rss(plan.pids));
    number("wrong", (double)tally.wrong);
    number("duplicates", (double)tally.duplicates);
    number("disordered", (double)tally.disordered);
    number("closed", (double)tally.closed);
    printf("\"missing\":%ld", missing);
    if (plan.trace)
        print_trace();
    printf("}\n");
    return !missing && !tally.refused && !tally.wrong && !tally.duplicates && !tally.disordered && !tally.closed;
}

/* Fill the histories, with one subscriber of each account that learns its cursors; then everybody comes back at once. */
static void fill_histories(void) {
    int each = plan.subscribers;
    plan.subscribers = 1;
    open_subscribers(1, false);
    idle(plan.settle);
    publish();
    for (int i = 0; i < plan.accounts; i++)
        hang_up(&subscribers[i]);
    plan.subscribers = each;
    tally.delivered = 0;
    tally.each = tally.last = (struct histogram){0};
    idle(2 * plan.settle);
}

static int run(void) {
    if (plan.resume)
        fill_histories();
    printf("{");
    long rss = server_rss(plan.pids);
    double began = now(), cpu = server_cpu(plan.pids), client = own_cpu();
    open_subscribers(plan.subscribers, plan.resume > 0);
    double seconds = now() - began, connect_cpu = server_cpu(plan.pids) - cpu;
    if (plan.resume) {
        for (double moved = now(); tally.delivered < deliveries_wanted() && now() - moved < plan.patience;) {
            long before = progress;
            turn(50);
            moved = progress == before ? moved : now();
        }
        seconds = now() - began;
    } else
        idle(plan.settle);
    report_opening(seconds, connect_cpu, server_rss(plan.pids) - rss);
    if (!plan.resume) {
        began = now();
        cpu = server_cpu(plan.pids);
        client = own_cpu();
        seconds = plan.events ? publish() : 1;
    }
    cpu = server_cpu(plan.pids) - cpu;
    client = own_cpu() - client;
    idle(plan.settle); /* is there more than there should be? */
    bool good = report(began, seconds, cpu, client);
    return good && opened == plan.accounts * plan.subscribers ? 0 : 1;
}

static const struct option OPTIONS[] = {
    {"port", 1, 0, 'p'},       {"accounts", 1, 0, 'a'}, {"subscribers", 1, 0, 's'}, {"events", 1, 0, 'e'},
    {"publishers", 1, 0, 'c'}, {"batch", 1, 0, 'b'},    {"bytes", 1, 0, 'B'},       {"window", 1, 0, 'w'},
    {"resume", 1, 0, 'r'},     {"rate", 1, 0, 'R'},     {"seconds", 1, 0, 'S'},     {"patience", 1, 0, 'P'},
    {"one-by-one", 0, 0, '1'}, {"trace", 0, 0, 't'},    {"sse", 0, 0, 'E'},         {"prefix", 1, 0, 'x'},
    {"pids", 1, 0, 'i'},       {"run", 1, 0, 'u'},      {"settle", 1, 0, 'l'},      {"header", 1, 0, 'H'},      {0},
};

static bool take(int option, const char *value) {
    switch (option) {
    case 'p': plan.port = atoi(value); break;
    case 'a': plan.accounts = atoi(value); break;
    case 's': plan.subscribers = atoi(value); break; /* of each account */
    case 'e': plan.events = atol(value); break;
    case 'c': plan.publishers = atoi(value); break;
    case 'b': plan.batch = atoi(value); break; /* events in one POST */
    case 'B': plan.bytes = atoi(value); break; /* of each event's string */
    case 'w': plan.window = atoi(value); break; /* subscribers that are connecting at a time */
    case 'r': plan.resume = atoi(value); break; /* every subscriber comes back to so many missed events */
    case 'R': plan.rate = atof(value); break; /* events per second; otherwise as fast as they are answered */
    case 'S': plan.seconds = atof(value); break; /* publish no longer than that */
    case 'P': plan.patience = atof(value); break; /* seconds in which something must move */
    case 'l': plan.settle = atof(value); break; /* seconds until those who came count as settled */
    case '1': plan.one_by_one = true; break; /* an event waits until all have the one before */
    case 't': plan.trace = true; break;
    case 'E': plan.mode = SSE; break;
    case 'x': plan.prefix = value; break; /* of the accounts' names */
    case 'i': plan.pids = value; break; /* the server's processes */
    case 'u': plan.run = atoi(value); break; /* what tells our events from those of other runs */
    case 'H': {
        static char line[2048]; /* for every request */
        snprintf(line, sizeof line, "%s\r\n", value);
        plan.header = line;
        break;
    }
    default: return false;
    }
    return true;
}

int main(int argc, char **argv) {
    plan.run = getpid();
    for (int option; (option = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;)
        if (!take(option, optarg))
            return 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (plan.resume)
        plan.events = (long)plan.accounts * (plan.resume + 1);
    plan.events -= plan.events % plan.batch;
    padding = malloc((size_t)plan.bytes + 1);
    memset(padding, 'x', (size_t)plan.bytes);
    padding[plan.bytes] = 0;
    poller = epoll_create1(0);
    open_ledger();
    return run();
}
