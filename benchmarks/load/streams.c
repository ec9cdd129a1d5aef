/* What a server sends to a subscriber, taken apart into messages: RFC 6455 frames, or the events of an SSE stream. */
#define _GNU_SOURCE
#include "load.h"

#include <stdlib.h>
#include <string.h>

enum { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

static void pong(struct conn *c, const unsigned char *payload, size_t size) {
    unsigned char frame[6 + 125] = {0x80 | PONG, (unsigned char)(0x80 | size)}; /* masked with zeros */
    memcpy(frame + 6, payload, size);
    speak(c, frame, 6 + size);
}

/* Servers do not fragment what is so short; a frame is a message. */
size_t read_websocket(struct conn *c, unsigned char *bytes, size_t size, bool *closing) {
    size_t at = 0;
    while (size - at >= 2) {
        unsigned char *b = bytes + at;
        size_t head = 2, length = b[1] & 127;
        if (length >= 126) {
            size_t wide = length == 126 ? 2 : 8;
            head += wide;
            if (size - at < head)
                break;
            length = 0;
            for (size_t i = 2; i < head; i++)
                length = length << 8 | b[i];
        }
        if (size - at < head + length)
            break;
        switch (b[0] & 15) {
        case TEXT:
        case BINARY:
            write_delivered(c, b + head, length);
            break;
        case PING:
            pong(c, b + head, length < 125 ? length : 125);
            break;
        case CLOSE:
            *closing = true;
        }
        at += head + length;
    }
    return at;
}

/* Moves the data of chunks together, to the front.  Then `c->decoded` bytes are text, and the others are chunks still. */
static void dechunk(struct conn *c, unsigned char *bytes, size_t *size) {
    size_t from = c->decoded, to = c->decoded;
    while (from < *size) {
        if (c->chunk_left > 0) {
            size_t step = *size - from < (size_t)c->chunk_left ? *size - from : (size_t)c->chunk_left;
            memmove(bytes + to, bytes + from, step);
            to += step;
            from += step;
            c->chunk_left -= (long)step;
            continue;
        }
        unsigned char *end = memchr(bytes + from, '\n', *size - from);
        if (!end)
            break;
        c->chunk_left = bytes[from] == '\r' ? 0 : strtol((char *)bytes + from, NULL, 16); /* an empty line ends each chunk */
        from = (size_t)(end + 1 - bytes);
    }
    memmove(bytes + to, bytes + from, *size - from);
    *size -= from - to;
    c->decoded = to;
}

size_t read_sse(struct conn *c, unsigned char *bytes, size_t *size) {
    size_t at = 0;
    if (c->chunked)
        dechunk(c, bytes, size);
    else
        c->decoded = *size;
    for (;;) {
        unsigned char *b = bytes + at, *end = memmem(b, c->decoded - at, "\n\n", 2);
        size_t gap = 2;
        if (!end) {
            end = memmem(b, c->decoded - at, "\r\n\r\n", 4);
            gap = 4;
        }
        if (!end)
            break;
        write_delivered(c, b, (size_t)(end - b));
        at += (size_t)(end - b) + gap;
    }
    c->decoded -= at;
    return at;
}
