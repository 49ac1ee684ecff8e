// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Breaks soft-dirty on purpose, for the processes of one name, so that the battery and every detector can be seen to
 * find a miss of class A on any kernel. For test guests only; never part of the product.
 *
 * insmod softdirty_faults.ko fault=FAULT comm=NAME
 *
 * fault=page-prot  The bug of 2014: after a clear, vm_page_prot of a shared writable VMA is writable again, as it was
 *                  before 64e455079e1b taught clear_refs_write() to call vma_set_page_prot().
 * fault=mprotect   mprotect() that grants write makes the present pages of an armed VMA writable at once, without
 *                  looking at soft-dirty, as change_pte_range() did from 3.18 to 5.18 and in 5.19.
 * fault=forget     A write fault leaves the page writable and not soft-dirty, in every mapping longer than one page, so that
 *                  even what no kernel misses is missed. One page is spared: the battery's canary is that long.
 * fault=driver     Mapping /dev/softdirty_faults meets a driver that puts a protection of its own into vm_page_prot when
 *                  a page is touched. With any other fault the device is well-behaved. NAME is not looked at.
 */
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/version.h>

static char *fault = "";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "page-prot, mprotect, forget or driver");
static char *comm = "";
module_param(comm, charp, 0444);
MODULE_PARM_DESC(comm, "name of the processes concerned");

/* The address space of a process of that name. Its owner is looked at, for the one who clears may be another. */
static bool chosen(struct mm_struct *mm)
{
	struct task_struct *owner;
	bool yes;

	rcu_read_lock();
	owner = rcu_dereference(mm->owner);
	yes = owner && strncmp(owner->comm, comm, TASK_COMM_LEN) == 0;
	rcu_read_unlock();
	return yes;
}

static bool armed(struct vm_area_struct *vma)
{
	return !(vma->vm_flags & VM_SOFTDIRTY);
}

/* The protection that a shared writable mapping has when nobody wants to be told of writes. */
static void make_page_prot_writable(struct vm_area_struct *vma)
{
	pgprot_t prot = vma->vm_page_prot;

	WRITE_ONCE(vma->vm_page_prot, __pgprot(pgprot_val(prot) | _PAGE_RW));
}

/* vma_set_page_prot(vma): only clear_refs_write() calls it for an armed VMA without mprotect() being at work. */
struct page_prot_call {
	struct vm_area_struct *vma;
};

static int page_prot_entry(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	((struct page_prot_call *)instance->data)->vma = (void *)regs->di;
	return 0;
}

static int page_prot_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct vm_area_struct *vma = ((struct page_prot_call *)instance->data)->vma;
	const vm_flags_t wanted = VM_SHARED | VM_WRITE;

	if ((vma->vm_flags & wanted) == wanted && armed(vma) && chosen(vma->vm_mm))
		make_page_prot_writable(vma);
	return 0;
}

static struct kretprobe page_prot_probe = {
	.kp.symbol_name = "vma_set_page_prot",
	.entry_handler = page_prot_entry,
	.handler = page_prot_return,
	.data_size = sizeof(struct page_prot_call),
	.maxactive = 64,
};

/* mprotect_fixup(): its arguments moved from release to release. */
struct mprotect_call {
	struct mm_struct *mm;
	unsigned long start, end;
};

static int mprotect_entry(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct mprotect_call *call = (void *)instance->data;
	struct vm_area_struct *vma;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	vma = (void *)regs->dx;	/* vmi, tlb, vma, pprev, start, end, newflags */
	call->start = regs->r8;
	call->end = regs->r9;
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 1, 0)
	vma = (void *)regs->si;	/* tlb, vma, pprev, start, end, newflags */
	call->start = regs->cx;
	call->end = regs->r8;
#else
	vma = (void *)regs->di;	/* vma, pprev, start, end, newflags */
	call->start = regs->dx;
	call->end = regs->cx;
#endif
	call->mm = vma->vm_mm;
	return chosen(call->mm) ? 0 : 1;
}

/* The entry for the 2 MiB around an address. */
static pmd_t *pmd_of(struct mm_struct *mm, unsigned long address)
{
	pgd_t *pgd = pgd_offset(mm, address);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	if (pgd_none(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, address);
	if (p4d_none(*p4d))
		return NULL;
	pud = pud_offset(p4d, address);
	if (pud_none(*pud) || pud_leaf(*pud))
		return NULL;
	pmd = pmd_offset(pud, address);
	return pmd_present(*pmd) ? pmd : NULL;
}

/* A huge page. */
static pmd_t *leaf_of(struct mm_struct *mm, unsigned long address)
{
	pmd_t *pmd = pmd_of(mm, address);

	return pmd && pmd_leaf(*pmd) ? pmd : NULL;
}

/* Changes the entry of a present page that is no huge one. */
static void change_pte(struct mm_struct *mm, unsigned long address, pte_t (*change)(pte_t))
{
	pmd_t *pmd = pmd_of(mm, address);
	spinlock_t *lock;
	pte_t *ptep, pte;

	if (!pmd || pmd_leaf(*pmd))
		return;
	lock = pte_lockptr(mm, pmd);
	spin_lock(lock);
	ptep = pte_offset_kernel(pmd, address);
	pte = READ_ONCE(*ptep);
	if (pte_present(pte) && !pte_special(pte))
		set_pte(ptep, change(pte));
	spin_unlock(lock);
}

static pte_t grant_write(pte_t pte)
{
	return __pte(pte_val(pte) | _PAGE_RW);
}

static pte_t forget(pte_t pte)
{
	return pte_clear_soft_dirty(pte);
}

static int mprotect_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct mprotect_call *call = (void *)instance->data;
	struct vm_area_struct *vma;
	unsigned long address;

	if (regs_return_value(regs) != 0)
		return 0;
	/* mprotect() still holds mmap_lock; the VMA may be another one after a merge. */
	vma = find_vma(call->mm, call->start);
	if (!vma || vma->vm_start > call->start || !(vma->vm_flags & VM_WRITE) || !armed(vma))
		return 0;
	for (address = call->start; address < call->end; address += PAGE_SIZE)
		change_pte(call->mm, address, grant_write);
	return 0;
}

static struct kretprobe mprotect_probe = {
	.kp.symbol_name = "mprotect_fixup",
	.entry_handler = mprotect_entry,
	.handler = mprotect_return,
	.data_size = sizeof(struct mprotect_call),
	.maxactive = 64,
};

/* handle_mm_fault(vma, address, flags, regs) */
struct fault_call {
	struct mm_struct *mm;
	unsigned long address;
};

static int fault_entry(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct fault_call *call = (void *)instance->data;
	struct vm_area_struct *vma = (void *)regs->di;

	call->mm = vma->vm_mm;
	call->address = regs->si;
	return (regs->dx & FAULT_FLAG_WRITE) && vma_pages(vma) > 1 && chosen(call->mm) ? 0 : 1;
}

static int fault_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct fault_call *call = (void *)instance->data;
	pmd_t *pmd;

	/* The page tables stay: the one who faults still uses this address space. */
	if (regs_return_value(regs) & (VM_FAULT_ERROR | VM_FAULT_RETRY))
		return 0;
	pmd = leaf_of(call->mm, call->address);
	if (pmd) {
		set_pmd(pmd, pmd_clear_soft_dirty(*pmd));
		return 0;
	}
	change_pte(call->mm, call->address, forget);
	return 0;
}

static struct kretprobe fault_probe = {
	.kp.symbol_name = "handle_mm_fault",
	.entry_handler = fault_entry,
	.handler = fault_return,
	.data_size = sizeof(struct fault_call),
	.maxactive = 256,
};

/* The probe of the chosen fault; the driver's needs none. */
static struct kretprobe *active;

/* The device: one page for everybody. */
static struct page *page;

static vm_fault_t device_fault(struct vm_fault *vmf)
{
	if (vmf->pgoff)
		return VM_FAULT_SIGBUS;
	if (!active)
		make_page_prot_writable(vmf->vma);
	get_page(page);
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct device_vm = {
	.fault = device_fault,
};

static int device_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vma->vm_ops = &device_vm;
	return 0;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.mmap = device_mmap,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "softdirty_faults",
	.fops = &device_operations,
};

static int __init softdirty_faults_init(void)
{
	int error;

	if (strcmp(fault, "page-prot") == 0)
		active = &page_prot_probe;
	else if (strcmp(fault, "mprotect") == 0)
		active = &mprotect_probe;
	else if (strcmp(fault, "forget") == 0)
		active = &fault_probe;
	else if (strcmp(fault, "driver") != 0)
		return -EINVAL;
	page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!page)
		return -ENOMEM;
	error = misc_register(&device);
	if (error)
		goto free;
	error = active ? register_kretprobe(active) : 0;
	if (!error)
		return 0;
	misc_deregister(&device);
free:
	__free_page(page);
	return error;
}

static void __exit softdirty_faults_exit(void)
{
	if (active)
		unregister_kretprobe(active);
	misc_deregister(&device);
	__free_page(page);
}

module_init(softdirty_faults_init);
module_exit(softdirty_faults_exit);
MODULE_DESCRIPTION("Breaks soft-dirty on purpose, for tests");
MODULE_LICENSE("Dual MIT/GPL");
