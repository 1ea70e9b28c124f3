# attempt_enter(regs, target): loads every general register from `regs` and jumps to `target`.
# attempt_back: entered with any registers; restores the C environment and returns from attempt_enter.
	.text
	.globl attempt_enter, attempt_back
attempt_enter:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, saved_rsp
	mov	%rsi, target
	mov	%rdi, %rax
	mov	8(%rax), %rbx
	mov	16(%rax), %rcx
	mov	24(%rax), %rdx
	mov	32(%rax), %rsi
	mov	40(%rax), %rdi
	mov	48(%rax), %rbp
	mov	56(%rax), %rsp
	mov	64(%rax), %r8
	mov	72(%rax), %r9
	mov	80(%rax), %r10
	mov	88(%rax), %r11
	mov	96(%rax), %r12
	mov	104(%rax), %r13
	mov	112(%rax), %r14
	mov	120(%rax), %r15
	mov	(%rax), %rax
	jmp	*target

attempt_back:
	mov	%rax, attempt_rax
	mov	saved_rsp, %rsp
	push	$0x202
	popf
	# FS base: arch_prctl(ARCH_SET_FS, attempt_fs_base)
	mov	$158, %eax
	mov	$0x1002, %edi
	mov	attempt_fs_base, %rsi
	syscall
	# GS base: zero, as Linux starts a program.
	mov	$158, %eax
	mov	$0x1001, %edi
	xor	%esi, %esi
	syscall
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

	.bss
	.balign 8
	.globl attempt_rax, attempt_fs_base
attempt_rax:	.quad 0
attempt_fs_base: .quad 0
saved_rsp:	.quad 0
target:	.quad 0
	.section .note.GNU-stack, "", @progbits
