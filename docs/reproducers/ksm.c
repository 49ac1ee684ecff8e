// Soft-dirty loses writes to pages that KSM merges afterwards (5.10 to 7.3; 6.12 up to 6.12.117).
// cc -O2 ksm.c && ./a.out    (as root: it runs KSM for a moment and puts its setting back)
//
// mm/ksm.c, replace_page(): the new PTE is made from vm_page_prot, orig_pte's soft-dirty bit is not carried over.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 64, PAGE = 4096 };
#define KSM "/sys/kernel/mm/ksm/"

static long get(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 1)
		perror(path), exit(2);
	close(fd);
	return atol(text);
}

static void set(const char *path, long value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || dprintf(fd, "%ld", value) < 1)
		perror(path), exit(2);
	close(fd);
}

int main(void)
{
	static uint64_t bits[PAGES];
	int pagemap = open("/proc/self/pagemap", O_RDONLY), missed = 0;
	char *memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long run = get(KSM "run"), passes = get(KSM "full_scans") + 4;

	memset(memory, 1, PAGES * PAGE);
	set("/proc/self/clear_refs", 4);
	memset(memory, 2, PAGES * PAGE);
	madvise(memory, PAGES * PAGE, MADV_MERGEABLE);
	set(KSM "run", 1);
	for (int i = 0; i < 6000 && get(KSM "full_scans") < passes; i++)
		usleep(10000);
	set(KSM "run", run);
	if (pread(pagemap, bits, sizeof(bits), (uintptr_t)memory / PAGE * 8) != sizeof(bits))
		return perror("pagemap"), 2;
	for (int i = 0; i < PAGES; i++)
		missed += !(bits[i] >> 55 & 1);
	printf("%d of %d page writes missed\n", missed, PAGES);
	return missed != 0;
}
