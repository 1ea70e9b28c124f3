import fractions
import math
import statistics
from decimal import Decimal, getcontext, localcontext

getcontext().prec = 60
print(Decimal(2).sqrt(), Decimal(1) / Decimal(7))
with localcontext() as context:
    context.prec = 200
    a, b, t, p = Decimal(1), 1 / Decimal(2).sqrt(), Decimal("0.25"), Decimal(1)
    for _ in range(9):
        a, b, t, p = (a + b) / 2, (a * b).sqrt(), t - p * ((a - b) / 2) ** 2, 2 * p
    print((a + b) ** 2 / (4 * t))
print(Decimal("1.1") + Decimal("2.2"), 1.1 + 2.2)
print(fractions.Fraction(355, 113) - fractions.Fraction(22, 7))
print(math.factorial(300))
print(math.fsum([0.1] * 10), math.sin(1e22), math.exp(-745), 5e-324)
print(statistics.stdev([1, 2, 3.5, 8]))
