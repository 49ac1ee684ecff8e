// Soft-dirty does not report new content that mremap() puts at an address by moving whole page tables (5.10 to 7.3).
// cc -O2 mremap.c && ./a.out
//
// mm/mremap.c: move_ptes() marks every moved PTE by move_soft_dirty_pte(), "so we can notice in userspace the ptes were
// moved"; move_normal_pmd() and move_normal_pud() move the table and mark nothing.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, TABLE = 512 * PAGE, LENGTH = 2 * TABLE };

static char *map(void)
{
	char *at = mmap(0, LENGTH + 2 * TABLE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	at = (char *)(((uintptr_t)at + 2 * TABLE - 1) & ~(uintptr_t)(TABLE - 1));
	mprotect(at, LENGTH, PROT_READ | PROT_WRITE);
	madvise(at, LENGTH, MADV_NOHUGEPAGE);
	return at;
}

static int unreported(int offset)
{
	static uint64_t bits[LENGTH / PAGE];
	int clear = open("/proc/self/clear_refs", O_WRONLY), pagemap = open("/proc/self/pagemap", O_RDONLY);
	char *from = map() + offset, *to = map();
	int length = LENGTH - TABLE / 2, missed = 0;

	memset(from, 1, length);
	memset(to, 2, length);
	if (write(clear, "4", 1) != 1)
		return perror("clear_refs"), -1;
	if (mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		return perror("mremap"), -1;
	if (pread(pagemap, bits, length / PAGE * 8, (uintptr_t)to / PAGE * 8) != length / PAGE * 8)
		return perror("pagemap"), -1;
	for (int i = 0; i < length / PAGE; i++)
		missed += to[i * PAGE] == 1 && !(bits[i] >> 55 & 1);
	return missed;
}

int main(void)
{
	int tables = unreported(0), pages = unreported(TABLE / 4);

	printf("pages whose content became another and which read clean: %d when tables move, %d page by page\n", tables, pages);
	return tables != 0;
}
