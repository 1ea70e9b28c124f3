use strict;
use warnings;
my %count;
open(my $in, '<', $ARGV[0]) or die "open: $!";
while (<$in>) {
    $count{$1}++ while /(word\d+)/g;
}
close $in;
printf "%s %d\n", $_, $count{$_} for sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
my $text = join ",", map { sprintf "%03d", $_ * 37 % 1000 } 1 .. 300;
(my $swapped = $text) =~ s/(\d)(\d)(\d)/$3$2$1/g;
print length($swapped), " ", substr($swapped, 0, 40), "\n";
my @sorted = sort { $a <=> $b } map { $_ * 7919 % 10007 } 1 .. 5000;
print "@sorted[0..9] $sorted[-1]\n";
open(my $missing, '<', '/nowhere/at/all') or print "$!\n";
my $string = "x" x 1_000_000;
print length($string), " ", unpack("%32C*", $string), "\n";
local $SIG{__WARN__} = sub { print "warned: $_[0]" };
warn "careful\n";
eval { die "caught\n" };
print $@;
print STDERR "to standard error\n";
exit 3;
