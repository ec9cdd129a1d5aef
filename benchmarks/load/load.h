/*
 * The load generator's rooms: meter.c reads clocks and /proc, ledger.c knows who must receive what, streams.c reads
 * WebSocket and Server-Sent Events, load.c connects, publishes and reports.
 */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BUCKETS = 64 * 40 };

/* Durations, to within 1.6 %. */
struct histogram {
    long total, count[BUCKETS];
};

double now(void); /* seconds, the same clock in all processes */
void note(struct histogram *h, double seconds);
double quantile(const struct histogram *h, double share); /* milliseconds; 0 if nothing was noted */
double server_cpu(const char *pids); /* seconds that these processes ("1,2,3") have computed, to the nanosecond */
double own_cpu(void);
long server_rss(const char *pids); /* KiB */

enum mode { WEBSOCKET, SSE };

/* A connection, of a subscriber or of a publisher. */
struct conn {
    int fd; /* -1: not connected */
    int account;
    bool publishes, open, busy, chunked;
    unsigned char *rest; /* what was read and is no whole message yet */
    size_t rest_size, decoded;
    long chunk_left;
    char *out; /* what could not be written yet */
    size_t out_size, out_at;
    long received; /* the account's events that it has */
    double posted; /* when a publisher sent what is not answered yet */
};

void speak(struct conn *c, const void *bytes, size_t size);

/* Both return how many bytes they have done with. */
size_t read_websocket(struct conn *c, unsigned char *bytes, size_t size, bool *closing);
size_t read_sse(struct conn *c, unsigned char *bytes, size_t *size);

struct plan {
    int port, accounts, subscribers, publishers, batch, bytes, window, resume;
    long events;
    double rate, seconds, patience, settle;
    bool one_by_one, trace;
    enum mode mode;
    const char *prefix, *pids, *header;
    int run;
};
extern struct plan plan;

/* What became of everything; wrong, duplicate and disordered deliveries are failures. */
struct tally {
    long published, accepted, refused, delivered, wrong, duplicates, disordered, closed, outstanding;
    struct histogram each, last, answers;
};
extern struct tally tally;

int account_of(long event);
void open_ledger(void);
void write_sent(long event, double time);
void write_delivered(struct conn *c, const unsigned char *text, size_t size);
void print_trace(void);
const char *first_cursor(int account); /* of an account's first event, as its first subscriber was told it; or NULL */

#endif
