/*
 * Who must receive what, and what was received.
 *
 * Whichever subscriber of an account is the first to get its k-th event decides which one that is; all others must get the
 * same.  So an event that is lost, doubled or overtaken at any single subscriber is seen.
 */
#define _GNU_SOURCE
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CURSOR = 64 };

struct tally tally;
static double *sent, *done;
static int *missing;
static long *order, *filled, per_account;
static bool *placed;
static char (*cursors)[CURSOR];

static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) {
        fprintf(stderr, "no memory\n");
        exit(3);
    }
    return memory;
}

/* Events are dealt out to the accounts in turn, a batch at a time. */
int account_of(long event) {
    return (int)(event / plan.batch % plan.accounts);
}

void open_ledger(void) {
    size_t events = (size_t)plan.events, accounts = (size_t)plan.accounts;
    long turn = (long)plan.batch * plan.accounts;
    per_account = (plan.events + turn - 1) / turn * plan.batch;
    sent = zeroed(events, sizeof *sent);
    done = zeroed(events, sizeof *done);
    missing = zeroed(events, sizeof *missing);
    placed = zeroed(events, sizeof *placed);
    order = zeroed(accounts * (size_t)per_account, sizeof *order);
    filled = zeroed(accounts, sizeof *filled);
    cursors = zeroed(accounts, sizeof *cursors);
}

void write_sent(long event, double time) {
    sent[event] = time;
    missing[event] = plan.subscribers;
    tally.outstanding += plan.subscribers > 0;
    tally.published++;
}

static void remember_cursor(int account, const unsigned char *text, size_t size) {
    const char *found = memmem(text, size, "\"cursor\":\"", 10);
    if (!found)
        return;
    const char *end = memchr(found + 10, '"', size - (size_t)(found + 10 - (const char *)text));
    if (end && end - found - 10 < CURSOR)
        memcpy(cursors[account], found + 10, (size_t)(end - found - 10));
}

const char *first_cursor(int account) {
    return cursors[account][0] ? cursors[account] : NULL;
}

/* Whether `event` is new to this subscriber; and if so, is it the same that the others got in this place? */
static bool is_new(struct conn *c, long event) {
    long place = c->received, *mine = order + (long)c->account * per_account;
    bool leads = place == filled[c->account];
    if (leads ? placed[event] : place > 0 && mine[place - 1] == event) {
        tally.duplicates++;
        return false;
    }
    if (leads) {
        mine[filled[c->account]++] = event;
        placed[event] = true;
    } else
        tally.disordered += mine[place] != event;
    c->received++;
    return true;
}

/* `text` is one message.  What is not an event of this run (the stream's own notices, for example) is nobody's business. */
void write_delivered(struct conn *c, const unsigned char *text, size_t size) {
    const char *mark = memmem(text, size, "@@", 2);
    char *next = NULL;
    if (!mark || strtol(mark + 2, &next, 10) != plan.run || *next != ':')
        return;
    long event = strtol(next + 1, NULL, 10);
    if (event < 0 || event >= plan.events || sent[event] == 0 || account_of(event) != c->account) {
        tally.wrong++;
        return;
    }
    if (plan.resume && c->received == 0)
        remember_cursor(c->account, text, size);
    if (!is_new(c, event))
        return;
    double time = now(), took = time - sent[event];
    tally.delivered++;
    note(&tally.each, took);
    if (--missing[event] == 0) {
        tally.outstanding--;
        done[event] = time;
        note(&tally.last, took);
    }
}

/* When each event was sent, and after how many milliseconds its last subscriber had it. */
void print_trace(void) {
    printf(",\"trace\":[");
    for (long i = 0, first = 1; i < plan.events; i++)
        if (done[i] > 0) {
            printf("%s[%.4f,%.3f]", first ? "" : ",", sent[i], (done[i] - sent[i]) * 1e3);
            first = 0;
        }
    printf("]");
}
