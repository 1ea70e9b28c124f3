/*
 * The code that runs inside the VM besides the program's own: one page of exception entries and the
 * flush routine, one page with the syscall entry in each of its two forms, and the probe.
 *
 * Every page is assembled on its own, position-independent, and padded with int3. The K_ constants
 * come from kvmlet-abi through build.rs.
 */

	.macro PAGE_BEGIN name
	.balign 4096
	.globl \name
	.hidden \name
\name:
	.endm

	/* Pads to the end of the page; fails to assemble when the code is longer. */
	.macro PAGE_END name
	.org \name + 4096, 0xcc
	.endm

	.section .rodata.kvmlet_stub, "a", @progbits

/* ---- Exceptions: entry v stands at v * K_ENTRY_STRIDE and leaves at once. ----
 *
 * No register is touched: the host reads the frame that the CPU pushed. The host never resumes
 * behind the out; ud2 keeps a mistake from running on.
 */
	PAGE_BEGIN kvmlet_stub_exception_code
	.set v, 0
	.rept K_VECTORS
	.org kvmlet_stub_exception_code + v * K_ENTRY_STRIDE, 0xcc
	out	%al, $(K_PORT_EXCEPTION + v)
	ud2
	.set v, v + 1
	.endr

/* ---- Flush: one step for each address on the stack, then rax and iretq. ----
 *
 * Entered K_FLUSH_STEP * n bytes before the last pop for n pages. Unrolled, because software KVM
 * emulates each instruction at CPL 0.
 *
 * Hardware: invlpg of the page. Software: a store to the page's table entry that does not change
 * it. KVM's shadow of a table page follows the stores that the guest makes, and no others: invlpg
 * drops nothing there unless the guest itself has written that table page. The store is of one byte:
 * to the first of an entry it drops that entry, to any other the shadow of the whole table.
 */
	.macro FLUSH offset, step:vararg
	.org kvmlet_stub_exception_code + \offset, 0xcc
	.rept K_FLUSH_MAX
	pop	%rax
	\step
	.endr
	pop	%rax
	iretq
	.endm
	FLUSH	K_FLUSH_HARDWARE, invlpg (%rax)
	FLUSH	K_FLUSH_SOFTWARE, orb $0, (%rax)

/* Clean: as a flush on hardware, but of any number of pages; then the extended state that a program starts with. The
 * stack holds the number of pages, their addresses, rcx, rdx, rax and the frame. The image has x87 and SSE: all other
 * components are given their initial values (SDM vol. 1, 13.8).
 *
 * xrstor leaves the last instruction, its operand and opcode alone on AMD's CPUs without XSAVEERPTR (CPUID.80000008H:EBX).
 * So a load of ours overwrites those of the program, and fninit clears them. The first one is for an exception that is
 * pending, which the load would raise.
 */
	.org kvmlet_stub_exception_code + K_CLEAN_RELOAD, 0xcc
	mov	%cr3, %rax
	mov	%rax, %cr3
	.org kvmlet_stub_exception_code + K_CLEAN, 0xcc
	pop	%rcx
	jrcxz	2f
1:	pop	%rax
	invlpg	(%rax)
	loop	1b
2:	fninit
	fildl	(kvmlet_stub_exception_code + K_INITIAL_XSTATE)(%rip)
	fninit
	mov	$-1, %eax
	mov	%eax, %edx
	xrstor64 (kvmlet_stub_exception_code + K_INITIAL_XSTATE)(%rip)
	pop	%rcx
	pop	%rdx
	pop	%rax
	iretq
	.org kvmlet_stub_exception_code + K_INITIAL_XSTATE, 0xcc
	.word	0x37f
	.zero	22
	.long	0x1f80
	.zero	512 - 28
	.quad	3
	.zero	56

/* Reload: drops every translation that is not global, of which there are none (SDM vol. 3A, 4.10.4.1).
 * Entered with the stack of a flush of no page. On hardware, when another address space is loaded.
 */
	.org kvmlet_stub_exception_code + K_RELOAD, 0xcc
	mov	%cr3, %rax
	mov	%rax, %cr3
	pop	%rax
	iretq
	PAGE_END kvmlet_stub_exception_code

/* ---- System calls ----
 *
 * In: rax number, rcx return address, r11 flags; all else belongs to the program. Numbers are
 * compared in 32 bits, as Linux does. Up to the out (the first of the two) nothing but the arithmetic
 * flags has changed, so that an interrupted entry can be unwound to the syscall instruction.
 */
/* The call page's word at an offset. */
#define CALL_PAGE(page, offset) (page + (K_CALL_PAGE - K_SYSCALL_CODE) + offset)(%rip)

	.macro DISPATCH p, page
	cmp	$102, %eax
	je	.L\p\()_start_1
	jb	1f
	cmp	$186, %eax
	je	.L\p\()_start_6
	ja	.L\p\()_call
	cmp	$107, %eax
	je	.L\p\()_start_2
	cmp	$104, %eax
	je	.L\p\()_start_3
	cmp	$108, %eax
	je	.L\p\()_start_4
	cmp	$110, %eax
	je	.L\p\()_start_5
	jmp	.L\p\()_call
1:	cmp	$39, %eax
	je	.L\p\()_start_0
.L\p\()_call:
	cmpl	$0, CALL_PAGE(\page, K_CALL_MODE)
	jne	.L\p\()_post
.L\p\()_leave:
	out	%al, $K_PORT_SYSCALL
	ud2
	.endm

	/*
	 * A call that a host thread may answer while the guest waits: the request goes to the call page,
	 * its ticket last, and the answer is waited for. Time is bounded, and the host may say that it
	 * cannot answer here: then the call leaves as it would have, and the host knows whether it had
	 * been taken. Registers change only from \p_stored on; the page has rax and rdx then.
	 */
	.macro POST p, page
	mov	%rax, CALL_PAGE(\page, K_CALL_NR)
	mov	%rdi, CALL_PAGE(\page, K_CALL_ARGS)
	mov	%rsi, CALL_PAGE(\page, K_CALL_ARGS + 8)
	mov	%rdx, CALL_PAGE(\page, K_CALL_ARGS + 16)
	mov	%r10, CALL_PAGE(\page, K_CALL_ARGS + 24)
	mov	%r8, CALL_PAGE(\page, K_CALL_ARGS + 32)
	mov	%r9, CALL_PAGE(\page, K_CALL_ARGS + 40)
	.ifc	\p, sw
	mov	%rcx, CALL_PAGE(\page, K_CALL_CAME_FROM)
	.endif
	.ifc	\p, jmp
	movq	$0, CALL_PAGE(\page, K_CALL_CAME_FROM)
	.endif
.L\p\()_stored:
	.ifc	\p, sw
	mov	%cs, %eax
	test	$3, %al
	jnz	4f
	mov	CALL_PAGE(\page, K_CALL_NR), %rax
	jmp	.Lsw_leave
4:
	.endif
	mov	CALL_PAGE(\page, K_CALL_POSTED), %eax
	inc	%eax
	mov	%eax, CALL_PAGE(\page, K_CALL_POSTED)
.L\p\()_posted:
	rdtsc
	shl	$32, %rdx
	or	%rdx, %rax
	add	CALL_PAGE(\page, K_CALL_SPIN), %rax
	mov	%rax, CALL_PAGE(\page, K_CALL_DEADLINE)
1:	mov	CALL_PAGE(\page, K_CALL_ANSWERED), %rax
	cmp	CALL_PAGE(\page, K_CALL_POSTED), %eax
	je	2f
	pause
	rdtsc
	shl	$32, %rdx
	or	%rdx, %rax
	cmp	CALL_PAGE(\page, K_CALL_DEADLINE), %rax
	jb	1b
3:	mov	CALL_PAGE(\page, K_CALL_ARGS + 16), %rdx
	mov	CALL_PAGE(\page, K_CALL_NR), %rax
.L\p\()_post_leave:
	out	%al, $K_PORT_SYSCALL
	ud2
2:	shr	$32, %rax
	jnz	3b
	mov	CALL_PAGE(\page, K_CALL_ARGS + 16), %rdx
	.endm

	/*
	 * Compatibility-mode entry (IA32_CSTAR), at K_CSTAR_OFFSET. No 32-bit code segment exists, so
	 * whoever gets here has forged something: fault at this privilege level, which ends the VM
	 * (CPL 0) or the program (CPL 3).
	 */
	.macro CSTAR_ENTRY page
	.org \page + K_CSTAR_OFFSET, 0xcc
	ud2
	.endm

	/* rax = constant \slot of the data page. */
	.macro LOAD page, slot
	mov	(\page + (K_STUB_DATA - K_SYSCALL_CODE) + 8 * \slot)(%rip), %rax
	.endm

	/*
	 * Offsets of the classification: entry, leave, the posted call's places in their order, then start
	 * and return of each answer.
	 */
	.macro MARKS p, page, name
	.section .rodata.kvmlet_marks, "a", @progbits
	.balign 4
	.globl \name
	.hidden \name
\name:
	.long	.L\p\()_entry - \page
	.long	.L\p\()_leave - \page
	.long	.L\p\()_post - \page
	.long	.L\p\()_stored - \page
	.long	.L\p\()_posted - \page
	.long	.L\p\()_post_leave - \page
	.long	.L\p\()_post_return - \page
	.irp	n, 0, 1, 2, 3, 4, 5, 6
	.long	.L\p\()_start_\n - \page
	.long	.L\p\()_return_\n - \page
	.endr
	.section .rodata.kvmlet_stub, "a", @progbits
	.endm

/* Hardware KVM: entered at CPL 0 with the program's stack; sysretq gives r11 back as flags. */
	PAGE_BEGIN kvmlet_stub_syscall_hardware
.Lhw_entry:
	DISPATCH hw, kvmlet_stub_syscall_hardware
	.irp	n, 0, 1, 2, 3, 4, 5, 6
.Lhw_start_\n:
	/*
	 * sysretq to a non-canonical rcx faults at CPL 0 on the program's stack on some CPUs. It cannot
	 * restore RF, and with TF it traps one instruction too early.
	 */
	bt	$47, %rcx
	jc	.Lhw_leave
	test	$0x10100, %r11d
	jnz	.Lhw_leave
	LOAD	kvmlet_stub_syscall_hardware, \n
.Lhw_return_\n:
	sysretq
	.endr
.Lhw_post:
	bt	$47, %rcx
	jc	.Lhw_leave
	test	$0x10100, %r11d
	jnz	.Lhw_leave
	POST	hw, kvmlet_stub_syscall_hardware
	mov	CALL_PAGE(kvmlet_stub_syscall_hardware, K_CALL_ANSWER), %rax
.Lhw_post_return:
	sysretq
	CSTAR_ENTRY kvmlet_stub_syscall_hardware
	PAGE_END kvmlet_stub_syscall_hardware
	MARKS hw, kvmlet_stub_syscall_hardware, kvmlet_stub_marks_hardware

/*
 * Software KVM: entered at CPL 3, IA32_FMASK applied. The flags it cleared that a program can see
 * (TF, DF, NT, AC) cannot be set again here without a stack, so such a call leaves. The arithmetic
 * flags are rebuilt from r11: OF by an addition that overflows when it was set, the others by sahf.
 *
 * A call that is answered here is posted now and then, for the host to see where it comes from.
 *
 * Where software KVM emulates the syscall instruction (it emulates ring 3 on a stack pointer that is
 * not canonical), the entry is at CPL 0, and a jump back would run the program there: leave instead.
 */
	.macro SOFTWARE_FLAGS
	bt	$11, %r11d
	setc	%al
	add	$127, %al
	mov	%r11d, %eax
	mov	%al, %ah
	sahf
	.endm

	.macro SOFTWARE_ANSWER n, number
.Lsw_start_\n:
	test	$0x44500, %r11d
	jnz	.Lsw_leave
	mov	%cs, %eax
	test	$3, %al
	jnz	1f
	mov	$\number, %eax
	jmp	.Lsw_leave
1:	decl	CALL_PAGE(kvmlet_stub_syscall_software, K_CALL_ASK)
	jns	2f
	movl	$K_ASK_EVERY, CALL_PAGE(kvmlet_stub_syscall_software, K_CALL_ASK)
	cmpl	$0, CALL_PAGE(kvmlet_stub_syscall_software, K_CALL_MODE)
	je	2f
	mov	$\number, %eax
	jmp	.Lsw_post
2:	SOFTWARE_FLAGS
	LOAD	kvmlet_stub_syscall_software, \n
.Lsw_return_\n:
	jmp	*%rcx
	int3
	.endm

	PAGE_BEGIN kvmlet_stub_syscall_software
.Lsw_entry:
	DISPATCH sw, kvmlet_stub_syscall_software
	SOFTWARE_ANSWER 0, 39
	SOFTWARE_ANSWER 1, 102
	SOFTWARE_ANSWER 2, 107
	SOFTWARE_ANSWER 3, 104
	SOFTWARE_ANSWER 4, 108
	SOFTWARE_ANSWER 5, 110
	SOFTWARE_ANSWER 6, 186
.Lsw_post:
	test	$0x44500, %r11d
	jnz	.Lsw_leave
	POST	sw, kvmlet_stub_syscall_software
	SOFTWARE_FLAGS
	mov	CALL_PAGE(kvmlet_stub_syscall_software, K_CALL_ANSWER), %rax
.Lsw_post_return:
	jmp	*%rcx
	int3

/*
 * The same for a call that jumps here (trampoline.rs) and so saves the instruction, which costs more than
 * the rest. As after a syscall, but r11 holds the arithmetic flags alone: AH of lahf in its bits 8 to
 * 15, OF in bit 0. Bit 1 is clear: so the host tells them from RFLAGS. All other flags are the
 * program's own and stay.
 */
	.macro DIRECT_FLAGS
	mov	%r11d, %eax
	add	$127, %al
	sahf
	.endm

	.balign 64, 0xcc
.Ljmp_entry:
	DISPATCH jmp, kvmlet_stub_syscall_software
	.irp	n, 0, 1, 2, 3, 4, 5, 6
.Ljmp_start_\n:
	DIRECT_FLAGS
	LOAD	kvmlet_stub_syscall_software, \n
.Ljmp_return_\n:
	jmp	*%rcx
	int3
	.endr
.Ljmp_post:
	POST	jmp, kvmlet_stub_syscall_software
	DIRECT_FLAGS
	mov	CALL_PAGE(kvmlet_stub_syscall_software, K_CALL_ANSWER), %rax
.Ljmp_post_return:
	jmp	*%rcx
	int3
	CSTAR_ENTRY kvmlet_stub_syscall_software
	PAGE_END kvmlet_stub_syscall_software
	MARKS sw, kvmlet_stub_syscall_software, kvmlet_stub_marks_software
	MARKS jmp, kvmlet_stub_syscall_software, kvmlet_stub_marks_trampoline

/* ---- Probe: one system call that no entry answers, from ring 3. ---- */
	PAGE_BEGIN kvmlet_stub_probe_code
	mov	$-1, %rax
	syscall
	out	%al, $K_PORT_PROBE
	ud2
	PAGE_END kvmlet_stub_probe_code

	.section .note.GNU-stack, "", @progbits
