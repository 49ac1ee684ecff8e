// SPDX-License-Identifier: MIT OR GPL-2.0
// Maps /dev/softdirty_faults, clears, reads the page, writes it, and says whether pagemap tells.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
	uint64_t bits;
	int device = open("/dev/softdirty_faults", O_RDWR), clear = open("/proc/self/clear_refs", O_WRONLY);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	volatile char *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);

	if (device < 0 || clear < 0 || pagemap < 0 || at == MAP_FAILED)
		return perror("setup"), 2;
	char old = *at;

	// Off the page table again, so that the read after the clear is a fault.
	if (madvise((void *)at, 4096, MADV_DONTNEED) || write(clear, "4", 1) != 1 || *at != old)
		return perror("clear"), 2;
	*at = old + 1;
	if (pread(pagemap, &bits, 8, (uintptr_t)at / 4096 * 8) != 8)
		return perror("pagemap"), 2;
	puts(bits >> 55 & 1 ? "tracked" : "missed");
	return 0;
}
