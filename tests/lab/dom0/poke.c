/*
 * lab-poke DOMID LAST_GFN PAGES: in dom0, damages up to PAGES pages that the guest's self-check filled (they begin with its
 * mark) by flipping one word of each, and prints "gfn 0xN: word 0xOLD -> 0xNEW" for each. Ends with 1 if it found none.
 * Maps by IOCTL_PRIVCMD_MMAPBATCH_V2 (Linux include/uapi/xen/privcmd.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../guest/selfcheck_mark.h"

#define BATCH 256
#define MMAPBATCH_V2 0x00205004
/* Pages between two damaged ones, so that they belong to several processes. */
#define STRIDE 97

struct mmapbatch_v2 {
  uint32_t num;
  uint16_t dom;
  uint64_t addr, arr, err;
};

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int fd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
  if (fd < 0) return perror("/dev/xen/privcmd"), 2;
  uint64_t last = strtoull(argv[2], NULL, 0);
  long wanted = atol(argv[3]), done = 0, seen = 0;
  for (uint64_t first = 0; first <= last && done < wanted; first += BATCH) {
    uint64_t gfns[BATCH];
    int32_t errors[BATCH];
    for (int i = 0; i < BATCH; i++) gfns[i] = first + i;
    void *map = mmap(NULL, BATCH * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return perror("mmap"), 2;
    struct mmapbatch_v2 batch = {BATCH, (uint16_t)atoi(argv[1]), (uintptr_t)map, (uintptr_t)gfns, (uintptr_t)errors};
    memset(errors, 0xff, sizeof errors);
    if (ioctl(fd, MMAPBATCH_V2, &batch) < 0 && errno != ENOENT) return perror("MMAPBATCH_V2"), 2;
    for (int i = 0; i < BATCH && done < wanted; i++) {
      if (errors[i]) continue;
      volatile uint64_t *page = (volatile uint64_t *)((char *)map + i * 4096);
      if (page[0] != SELFCHECK_MARK || seen++ % STRIDE) continue;
      uint64_t old = page[256];
      page[256] = ~old;
      printf("gfn 0x%llx: word 0x%016llx -> 0x%016llx\n", (unsigned long long)gfns[i], (unsigned long long)old,
             (unsigned long long)~old);
      done++;
    }
    munmap(map, BATCH * 4096);
  }
  return done ? 0 : 1;
}
