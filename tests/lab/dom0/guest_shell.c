/*
 * lab-guest-shell DOMID TOKEN TIMEOUT_MS: in dom0, hands the command on standard input to the guest's xenstore shell and
 * prints its answer ("STATUS OUTPUT"). With an empty command it only waits for the answer. Ends with 124 at the time limit.
 */
#include <stdlib.h>
#include <sys/file.h>
#include <time.h>
#include "../guest/xenbus.h"

static long long now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Writes the command when the guest has taken the one before. Those who want to write wait for each other at a lock. */
static int post(struct xenbus *bus, int domid, const char *token, const char *command, size_t length, long long end) {
  char node[64], body[3700], value[XENBUS_PAYLOAD + 1];
  snprintf(node, sizeof node, "/run/lab-guest-shell-%d", domid);
  int lock = open(node, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0 || flock(lock, LOCK_EX) < 0) return perror(node), 2;
  snprintf(node, sizeof node, "/local/domain/%d/data/lab/command", domid);
  int n = snprintf(body, sizeof body, "%.64s %.*s", token, (int)length, command);
  if (xenbus_put(bus, node, body, n) < 0) return perror(node), 2;
  while (xenbus_get(bus, node, value) >= 0) {
    if (now_ms() > end) return fprintf(stderr, "the guest does not take the command\n"), 124;
    usleep(20000);
  }
  close(lock);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  char command[3600], value[XENBUS_PAYLOAD + 1], path[160];
  int domid = atoi(argv[1]);
  size_t length = fread(command, 1, sizeof command, stdin);
  if (length == sizeof command) return fprintf(stderr, "the command is longer than %zu bytes\n", sizeof command - 1), 2;
  struct xenbus bus;
  snprintf(path, sizeof path, "/local/domain/%d/data/lab/answer/%.64s", domid, argv[2]);
  if (xenbus_open(&bus) < 0 || xenbus_watch(&bus, path) < 0) return perror("xenstore"), 2;
  long long end = now_ms() + atoll(argv[3]);
  int failed = length ? post(&bus, domid, argv[2], command, length, end) : 0;
  if (failed) return failed;
  for (;;) {
    int n = xenbus_get(&bus, path, value);
    if (n >= 0) {
      fwrite(value, 1, n, stdout);
      if (length) xenbus_remove(&bus, path);
      return 0;
    }
    long long left = end - now_ms();
    if (left <= 0) return fprintf(stderr, "no answer within %s ms\n", argv[3]), 124;
    if (xenbus_wait(&bus, left > 1000 ? 1000 : (int)left) < 0) return perror("xenstore watch"), 2;
  }
}
