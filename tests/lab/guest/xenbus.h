/*
 * A xenstore client over /dev/xen/xenbus: one request at a time, watch events kept for later. Shared by the programs in
 * the guest and in dom0. Format: public/io/xs_wire.h. Through the kernel's device a message is at most 4096 bytes, header
 * included, and watch events carry no usable request id (drivers/xen/xenbus/xenbus_dev_frontend.c).
 */
#ifndef LAB_XENBUS_H
#define LAB_XENBUS_H
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_MKDIR = 12, XS_RM = 13, XS_WATCH_EVENT = 15, XS_ERROR = 16 };

#define XENBUS_PAYLOAD 4080

struct xenbus {
  int fd;
  int event; /* a watch event came while a reply was awaited */
};

struct xenbus_header {
  uint32_t type, req_id, tx_id, len;
};

static inline int xenbus_open(struct xenbus *bus) {
  bus->fd = open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC);
  bus->event = 0;
  return bus->fd < 0 ? -1 : 0;
}

static int xenbus_read_all(int fd, void *buffer, size_t length) {
  char *at = buffer;
  while (length) {
    ssize_t n = read(fd, at, length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return -1;
    at += n;
    length -= n;
  }
  return 0;
}

/* Reads one message. Its type, or -1. `payload` needs XENBUS_PAYLOAD + 1 bytes and gets a closing NUL. */
static int xenbus_receive(struct xenbus *bus, char *payload, uint32_t *length) {
  struct xenbus_header header;
  if (xenbus_read_all(bus->fd, &header, sizeof header) < 0) return -1;
  char rest[256];
  uint32_t keep = header.len > XENBUS_PAYLOAD ? XENBUS_PAYLOAD : header.len;
  if (xenbus_read_all(bus->fd, payload, keep) < 0) return -1;
  for (uint32_t left = header.len - keep; left;) {
    uint32_t part = left > sizeof rest ? sizeof rest : left;
    if (xenbus_read_all(bus->fd, rest, part) < 0) return -1;
    left -= part;
  }
  payload[keep] = 0;
  *length = keep;
  return (int)header.type;
}

/* Length of the reply, or -1 with an error (ENOENT for a node that is not there). `reply` as in xenbus_receive. */
static int xenbus_request(struct xenbus *bus, uint32_t type, const void *body, uint32_t body_length, char *reply) {
  char message[4096];
  struct xenbus_header header = {type, 1, 0, body_length};
  if (sizeof header + body_length > sizeof message) return errno = E2BIG, -1;
  memcpy(message, &header, sizeof header);
  memcpy(message + sizeof header, body, body_length);
  if (write(bus->fd, message, sizeof header + body_length) != (ssize_t)(sizeof header + body_length)) return -1;
  for (;;) {
    uint32_t length;
    int got = xenbus_receive(bus, reply, &length);
    if (got < 0) return -1;
    if (got == XS_WATCH_EVENT) {
      bus->event = 1;
      continue;
    }
    if (got == XS_ERROR) return errno = strcmp(reply, "ENOENT") ? EIO : ENOENT, -1;
    return (int)length;
  }
}

static inline int xenbus_get(struct xenbus *bus, const char *path, char *value) {
  return xenbus_request(bus, XS_READ, path, strlen(path) + 1, value);
}

static inline int xenbus_put(struct xenbus *bus, const char *path, const char *value, size_t length) {
  char body[XENBUS_PAYLOAD], reply[XENBUS_PAYLOAD + 1];
  size_t name = strlen(path) + 1;
  if (name + length > sizeof body) return errno = E2BIG, -1;
  memcpy(body, path, name);
  memcpy(body + name, value, length);
  return xenbus_request(bus, XS_WRITE, body, name + length, reply);
}

static inline int xenbus_remove(struct xenbus *bus, const char *path) {
  char reply[XENBUS_PAYLOAD + 1];
  return xenbus_request(bus, XS_RM, path, strlen(path) + 1, reply);
}

/* The first event comes at once. */
static inline int xenbus_watch(struct xenbus *bus, const char *path) {
  char body[512], reply[XENBUS_PAYLOAD + 1];
  int length = snprintf(body, sizeof body, "%s%clab", path, 0);
  if (length < 0 || length + 1 > (int)sizeof body) return errno = E2BIG, -1;
  return xenbus_request(bus, XS_WATCH, body, length + 1, reply);
}

/* Waits for a watch event: 1 there is one, 0 time is up, -1 an error. */
static inline int xenbus_wait(struct xenbus *bus, int timeout_ms) {
  if (bus->event) return bus->event = 0, 1;
  struct pollfd p = {bus->fd, POLLIN, 0};
  int n = poll(&p, 1, timeout_ms);
  if (n < 0) return errno == EINTR ? 0 : -1;
  if (n == 0) return 0;
  char payload[XENBUS_PAYLOAD + 1];
  uint32_t length;
  return xenbus_receive(bus, payload, &length) < 0 ? -1 : 1;
}
#endif
