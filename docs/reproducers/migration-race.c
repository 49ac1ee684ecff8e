// Soft-dirty loses writes to pages that migrate while clear_refs runs (6.12 to 7.3; not 6.1).
// cc -O2 -pthread migration-race.c && ./a.out    (two NUMA nodes with memory, numbers 0 and 1)
//
// fs/proc/task_mmu.c, clear_soft_dirty(): a migration entry loses its soft-dirty bit but stays writable;
// mm/migrate.c, remove_migration_pte(): a writable entry becomes a writable PTE, without soft-dirty.
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGES = 512, PAGE = 4096, ROUNDS = 40 };
static char *memory;

static void *mover(void *unused)
{
	static void *pages[PAGES];
	static int nodes[2][PAGES], status[PAGES];

	for (int i = 0; i < PAGES; i++) {
		pages[i] = memory + i * PAGE;
		nodes[1][i] = 1;
	}
	for (int to = 0;; to ^= 1)
		syscall(SYS_move_pages, 0, (long)PAGES, pages, nodes[to], status, 2 /* MPOL_MF_MOVE */);
	return unused;
}

int main(void)
{
	static uint64_t bits[PAGES];
	int clear = open("/proc/self/clear_refs", O_WRONLY), pagemap = open("/proc/self/pagemap", O_RDONLY);
	pthread_t thread;
	int missed = 0;

	memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
	if (clear < 0 || pagemap < 0 || memory == MAP_FAILED || pthread_create(&thread, 0, mover, 0))
		return perror("setup"), 2;
	for (int round = 0; round < ROUNDS; round++) {
		for (int i = 0; i < PAGES; i++)
			memory[i * PAGE] = round;
		if (write(clear, "4", 1) != 1)
			return perror("clear_refs"), 2;
		for (int i = 0; i < PAGES; i++)
			memory[i * PAGE] = round + 1;
		if (pread(pagemap, bits, sizeof(bits), (uintptr_t)memory / PAGE * 8) != sizeof(bits))
			return perror("pagemap"), 2;
		for (int i = 0; i < PAGES; i++)
			missed += !(bits[i] >> 55 & 1);
	}
	printf("%d of %d page writes missed\n", missed, ROUNDS * PAGES);
	return missed != 0;
}
