/*
 * The xenstore shell: runs what the host writes into `data/lab/command` ("TOKEN COMMAND") and answers in
 * `data/lab/answer/TOKEN` ("STATUS OUTPUT"). Needs no network. `data/lab/answer/ready` says that it listens.
 *
 * Paths are relative, so that a clone serves its own tree; the kernel registers the watch again on wake-up. Each command has
 * a process of its own which writes the answer: a command that forks the machine goes on in parent and clones, and each of
 * them answers in its own tree. A command is removed when it is taken; the token that was served last is not served again.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include "xenbus.h"

/* oxenstored refuses values above 2048 bytes (oxenstored.conf, quota-maxsize). */
#define OUTPUT_MAX 2000
#define TOKEN_MAX 64

/* Runs `command`; what it prints after the first OUTPUT_MAX bytes is read and dropped. */
static void serve(const char *token, const char *command) {
  char answer[OUTPUT_MAX + 32], output[OUTPUT_MAX], path[128], rest[1024];
  size_t length = 0;
  int status = 0, ends[2];
  signal(SIGCHLD, SIG_DFL);
  if (pipe(ends) < 0) _exit(1);
  pid_t pid = fork();
  if (pid < 0) _exit(1);
  if (pid == 0) {
    dup2(ends[1], 1);
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    setsid();
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
  }
  close(ends[1]);
  /* A background job may keep the pipe open: the shell's own end counts, with 100 ms for what is still in the pipe. */
  for (int ended = 0;;) {
    struct pollfd p = {ends[0], POLLIN, 0};
    int n = poll(&p, 1, 100);
    if (n > 0) {
      ssize_t got = length < OUTPUT_MAX ? read(ends[0], output + length, OUTPUT_MAX - length) : read(ends[0], rest, sizeof rest);
      if (got == 0 || (got < 0 && errno != EINTR)) break;
      if (got > 0 && length < OUTPUT_MAX) length += got;
    } else if (ended) {
      break;
    }
    if (!ended && waitpid(pid, &status, WNOHANG) == pid) ended = 1, pid = 0;
  }
  if (pid) waitpid(pid, &status, 0);
  for (size_t i = 0; i < length; i++)
    if (!output[i]) output[i] = '?'; /* a value is text */
  int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  int head = snprintf(answer, sizeof answer, "%d ", code);
  memcpy(answer + head, output, length);
  snprintf(path, sizeof path, "data/lab/answer/%.64s", token);
  struct xenbus bus;
  if (xenbus_open(&bus) < 0 || xenbus_put(&bus, path, answer, head + length) < 0) {
    fprintf(stderr, "lab: cannot answer %s: %s\n", token, strerror(errno));
    _exit(1);
  }
  _exit(0);
}

int main(void) {
  struct xenbus bus;
  char value[XENBUS_PAYLOAD + 1], last[TOKEN_MAX + 1] = "";
  signal(SIGCHLD, SIG_IGN);
  if (xenbus_open(&bus) < 0 || xenbus_watch(&bus, "data/lab/command") < 0) {
    perror("lab: no xenstore");
    return 1;
  }
  printf("lab: xenstore shell ready\n");
  fflush(stdout);
  for (;;) {
    if (xenbus_wait(&bus, -1) < 0) {
      perror("lab: xenstore watch");
      return 1;
    }
    if (xenbus_get(&bus, "data/lab/command", value) < 0) {
      /* A clone's tree is new. */
      if (xenbus_get(&bus, "data/lab/answer/ready", value) < 0) xenbus_put(&bus, "data/lab/answer/ready", "0 ", 2);
      continue;
    }
    xenbus_remove(&bus, "data/lab/command");
    char *space = strchr(value, ' ');
    if (!space || space == value || space - value > TOKEN_MAX) continue;
    *space = 0;
    if (!strcmp(value, last) || strchr(value, '/')) continue;
    strcpy(last, value);
    if (fork() == 0) serve(value, space + 1);
  }
}
