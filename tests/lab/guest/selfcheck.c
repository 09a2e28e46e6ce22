/*
 * selfcheck [MIB [SECONDS]]: a guest that notices damage to itself. Several processes fill MIB of memory with a pattern
 * derived from address, round and a seed of the process's own, hold it, and verify every word before the next round; hold
 * SSE and AVX registers across time and system calls; and fork children that verify their copy. Mismatches are printed and
 * counted; a process that dies counts as one. Every SECONDS a verdict goes to the console and to xenstore's `data/selfcheck`:
 *   rounds=N mismatches=M seconds=S
 */
#include <cpuid.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include "selfcheck_mark.h"
#include "xenbus.h"

#define MEMORY_PROCESSES 4
#define WORKERS (MEMORY_PROCESSES + 3)
#define PAGE_WORDS 512
#define FORK_BYTES (2u << 20)
/* How long a filled memory rests before it is verified. */
#define HOLD_MS 400

struct shared {
  volatile uint64_t rounds[WORKERS], mismatches;
};
static struct shared *shared;

static uint64_t mix(uint64_t x) { /* splitmix64's finaliser */
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static void rest(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, NULL);
}

__attribute__((format(printf, 1, 2))) static void mismatch(const char *format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  /* Each is counted, only the first are printed: a broken machine must not drown in its own console. */
  if (__atomic_add_fetch(&shared->mismatches, 1, __ATOMIC_SEQ_CST) <= 50) dprintf(1, "selfcheck: MISMATCH %s\n", text);
}

static uint64_t word_at(const uint64_t *at, size_t index, uint64_t base) {
  if (index % PAGE_WORDS == 0) return SELFCHECK_MARK;
  return base ^ ((uintptr_t)at * 0x9e3779b97f4a7c15ULL);
}

static void fill(uint64_t *memory, size_t words, uint64_t seed, uint64_t round) {
  uint64_t base = mix(seed + round);
  for (size_t i = 0; i < words; i++) memory[i] = word_at(memory + i, i, base);
}

static void verify(const uint64_t *memory, size_t words, uint64_t seed, uint64_t round, const char *who) {
  uint64_t base = mix(seed + round);
  for (size_t i = 0; i < words; i++) {
    uint64_t want = word_at(memory + i, i, base);
    if (memory[i] != want)
      mismatch("%s: round %llu, word %zu at %p: 0x%016llx instead of 0x%016llx", who, (unsigned long long)round, i,
               (void *)(memory + i), (unsigned long long)memory[i], (unsigned long long)want);
  }
}

static uint64_t *memory_of(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    perror("selfcheck: mmap");
    exit(3);
  }
  return memory;
}

static void memory_worker(int id, size_t bytes) {
  char who[32];
  snprintf(who, sizeof who, "memory %d", id);
  uint64_t seed = mix(0x1000 + id), *memory = memory_of(bytes);
  for (uint64_t round = 1;; round++) {
    fill(memory, bytes / 8, seed, round);
    rest(HOLD_MS);
    verify(memory, bytes / 8, seed, round, who);
    shared->rounds[id]++;
  }
}

/* A child verifies its copy while the parent writes the next round over its own, then the child's copy is written too. */
static void fork_worker(int id) {
  uint64_t seed = mix(0x2000), *memory = memory_of(FORK_BYTES);
  for (uint64_t round = 1;; round++) {
    fill(memory, FORK_BYTES / 8, seed, round);
    pid_t pid = fork();
    if (pid < 0) {
      mismatch("fork: %s", strerror(errno));
      rest(1000);
      continue;
    }
    if (pid == 0) {
      verify(memory, FORK_BYTES / 8, seed, round, "forked copy");
      fill(memory, FORK_BYTES / 8, ~seed, round);
      rest(50);
      verify(memory, FORK_BYTES / 8, ~seed, round, "forked copy, written");
      _exit(0);
    }
    verify(memory, FORK_BYTES / 8, seed, round, "fork's parent");
    int status;
    if (waitpid(pid, &status, 0) != pid || status) mismatch("forked child ended with %x", status);
    verify(memory, FORK_BYTES / 8, seed, round, "fork's parent, after");
    shared->rounds[id]++;
    rest(HOLD_MS);
  }
}

/* Loads 16 registers, spins, sleeps in the kernel, spins, stores them: nothing but the machine's context switches can change them. */
#define HOLD_REGISTERS(move, reg, size)                                                                              \
  __asm__ volatile(                                                                                                  \
      move " 0*" size "(%[in]),%%" reg "0\n" move " 1*" size "(%[in]),%%" reg "1\n"                                  \
      move " 2*" size "(%[in]),%%" reg "2\n" move " 3*" size "(%[in]),%%" reg "3\n"                                  \
      move " 4*" size "(%[in]),%%" reg "4\n" move " 5*" size "(%[in]),%%" reg "5\n"                                  \
      move " 6*" size "(%[in]),%%" reg "6\n" move " 7*" size "(%[in]),%%" reg "7\n"                                  \
      move " 8*" size "(%[in]),%%" reg "8\n" move " 9*" size "(%[in]),%%" reg "9\n"                                  \
      move " 10*" size "(%[in]),%%" reg "10\n" move " 11*" size "(%[in]),%%" reg "11\n"                              \
      move " 12*" size "(%[in]),%%" reg "12\n" move " 13*" size "(%[in]),%%" reg "13\n"                              \
      move " 14*" size "(%[in]),%%" reg "14\n" move " 15*" size "(%[in]),%%" reg "15\n"                              \
      "mov $200000,%%r10d\n1: dec %%r10d\njnz 1b\n"                                                                  \
      "mov $35,%%eax\nmov %[time],%%rdi\nxor %%esi,%%esi\nsyscall\n" /* nanosleep */                                  \
      "mov $200000,%%r10d\n2: dec %%r10d\njnz 2b\n"                                                                  \
      move " %%" reg "0,0*" size "(%[out])\n" move " %%" reg "1,1*" size "(%[out])\n"                                \
      move " %%" reg "2,2*" size "(%[out])\n" move " %%" reg "3,3*" size "(%[out])\n"                                \
      move " %%" reg "4,4*" size "(%[out])\n" move " %%" reg "5,5*" size "(%[out])\n"                                \
      move " %%" reg "6,6*" size "(%[out])\n" move " %%" reg "7,7*" size "(%[out])\n"                                \
      move " %%" reg "8,8*" size "(%[out])\n" move " %%" reg "9,9*" size "(%[out])\n"                                \
      move " %%" reg "10,10*" size "(%[out])\n" move " %%" reg "11,11*" size "(%[out])\n"                            \
      move " %%" reg "12,12*" size "(%[out])\n" move " %%" reg "13,13*" size "(%[out])\n"                            \
      move " %%" reg "14,14*" size "(%[out])\n" move " %%" reg "15,15*" size "(%[out])\n"                            \
      :                                                                                                              \
      : [in] "b"(in), [out] "d"(out), [time] "r"(&pause)                                                             \
      : "rax", "rcx", "rdi", "rsi", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",     \
        "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

static void hold_sse(const uint64_t *in, uint64_t *out) {
  struct timespec pause = {0, 20000000};
  HOLD_REGISTERS("movups", "xmm", "16");
}

__attribute__((target("avx"))) static void hold_avx(const uint64_t *in, uint64_t *out) {
  struct timespec pause = {0, 20000000};
  HOLD_REGISTERS("vmovups", "ymm", "32");
}

static int has_avx(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_AVX) || !(c & bit_OSXSAVE)) return 0;
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & 6) == 6;
}

static void register_worker(int id, int avx) {
  size_t words = avx ? 64 : 32;
  uint64_t in[64], out[64], seed = mix(0x3000 + avx);
  for (uint64_t round = 1;; round++) {
    for (size_t i = 0; i < words; i++) in[i] = mix(seed + round * 64 + i);
    memset(out, 0, sizeof out);
    if (avx) hold_avx(in, out);
    else hold_sse(in, out);
    for (size_t i = 0; i < words; i++)
      if (in[i] != out[i])
        mismatch("%s register %zu: 0x%016llx instead of 0x%016llx", avx ? "AVX" : "SSE", i / (avx ? 4 : 2),
                 (unsigned long long)out[i], (unsigned long long)in[i]);
    shared->rounds[id]++;
  }
}

static pid_t start(int id, size_t bytes) {
  pid_t pid = fork();
  if (pid) return pid;
  if (id < MEMORY_PROCESSES) memory_worker(id, bytes);
  if (id == MEMORY_PROCESSES) fork_worker(id);
  if (id == MEMORY_PROCESSES + 2 && !has_avx()) id = -1;
  if (id < 0)
    for (;;) pause();
  register_worker(id, id == MEMORY_PROCESSES + 2);
  exit(0);
}

int main(int argc, char **argv) {
  size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 40;
  long seconds = argc > 2 ? atol(argv[2]) : 3;
  if (mib < 8 || mib > 4096 || seconds < 1) return fprintf(stderr, "usage: selfcheck [MIB [SECONDS]]\n"), 2;
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return perror("selfcheck: mmap"), 3;
  /* The fork worker's memory counts twice: its child writes a copy. */
  size_t bytes = ((mib << 20) - 2 * FORK_BYTES) / MEMORY_PROCESSES & ~4095UL;
  pid_t pids[WORKERS];
  for (int id = 0; id < WORKERS; id++) pids[id] = start(id, bytes);
  printf("selfcheck: %zu MiB in %d processes, SSE%s\n", mib, WORKERS, has_avx() ? " and AVX" : ", no AVX");
  fflush(stdout);
  struct xenbus bus;
  int connected = xenbus_open(&bus) == 0;
  struct timespec from, now;
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (;;) {
    rest(seconds * 1000);
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
      for (int id = 0; id < WORKERS; id++)
        if (pids[id] == pid) mismatch("process %d ended with %x", id, status), pids[id] = start(id, bytes);
    /* A round is one in which every memory process and the fork process verified its memory once. */
    uint64_t rounds = shared->rounds[0];
    for (int id = 1; id <= MEMORY_PROCESSES; id++)
      if (shared->rounds[id] < rounds) rounds = shared->rounds[id];
    clock_gettime(CLOCK_MONOTONIC, &now);
    char text[128];
    int length = snprintf(text, sizeof text, "rounds=%llu mismatches=%llu seconds=%ld", (unsigned long long)rounds,
                          (unsigned long long)shared->mismatches, (long)(now.tv_sec - from.tv_sec));
    printf("selfcheck: %s\n", text);
    fflush(stdout);
    if (connected && xenbus_put(&bus, "data/selfcheck", text, length) < 0) perror("selfcheck: xenstore");
  }
}
