/* The kernels of `_chase.c`, compiled once for each instruction set: the file that includes this says which by TARGET, a
 * function attribute, and by NAMED, which makes a name of its own of each.
 */

/* y = W v for the window W of 2 b rows and b columns whose columns lie `line` numbers apart. */
TARGET static void NAMED(window_times)(const double *window, Py_ssize_t line, Py_ssize_t reach, const double *v, double *restrict y)
{
    memset(y, 0, (size_t)(2 * reach) * sizeof(double));
    Py_ssize_t c = 0;
    for (; c + 4 <= reach; c += 4) {
        const double *one = window + c * line, *two = one + line, *three = two + line, *four = three + line;
        const double a = v[c], b = v[c + 1], e = v[c + 2], f = v[c + 3];
        Py_ssize_t i = 0;
        for (; i + 8 <= 2 * reach; i += 8)
            AT(y, i) += a * AT(one, i) + b * AT(two, i) + e * AT(three, i) + f * AT(four, i);
        for (; i < 2 * reach; i++)
            y[i] += a * one[i] + b * two[i] + e * three[i] + f * four[i];
    }
    for (; c < reach; c++)
        for (Py_ssize_t i = 0; i < 2 * reach; i++)
            y[i] += v[c] * window[c * line + i];
}

TARGET static double NAMED(dot)(const double *x, const double *y, Py_ssize_t count)
{
    wide one = {0}, two = {0};
    Py_ssize_t i = 0;
    for (; i + 16 <= count; i += 16) {
        one += AT(x, i) * AT(y, i);
        two += AT(x, i + 8) * AT(y, i + 8);
    }
    one += two;
    double sum = 0;
    for (int lane = 0; lane < 8; lane++)
        sum += one[lane];
    for (; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

/* x[i] -= a p[i] + b q[i] */
TARGET static inline void NAMED(subtract)(double *restrict x, double a, const double *p, double b, const double *q, Py_ssize_t count)
{
    Py_ssize_t i = 0;
    for (; i + 8 <= count; i += 8)
        AT(x, i) -= a * AT(p, i) + b * AT(q, i);
    for (; i < count; i++)
        x[i] -= a * p[i] + b * q[i];
}

/* Turn x (n) into the v of norm sqrt(2), or 0, with (I - v v') x = beta e_1, and return beta. */
TARGET static double NAMED(reflect)(double *x, Py_ssize_t count)
{
    const double tail = NAMED(dot)(x + 1, x + 1, count - 1), first = x[0];
    if (!(tail > SMALLEST)) {
        memset(x, 0, (size_t)count * sizeof(double));
        return first;
    }
    const double norm = sqrt(first * first + tail), scale = 1 / sqrt(norm * (norm + fabs(first)));
    const double beta = first > 0 ? -norm : norm;
    x[0] -= beta;
    for (Py_ssize_t i = 0; i < count; i++)
        x[i] *= scale;
    return beta;
}

/* One step of one sweep: apply the reflector v to its windows, whose first row and column is `start`, and make the next
 * one, u; `room` is for 4 b numbers. With v on the diagonal block D and the bulge E below it, v'v = u'u = 2,
 *
 *     w = D v - (v' D v / 2) v;    D - w v' - v w'
 *     y = E v;    u clears the first column of E - y v'
 *     z = E' u - (u' y) v;    E - y v' - u z'
 */
TARGET static void NAMED(advance)(double *matrix, Py_ssize_t reach, Py_ssize_t start, const double *v, double *u, double *room)
{
    const Py_ssize_t line = 3 * reach - 1;
    double *window = matrix + start * 3 * reach, *bulge = window + reach;
    double *w = room, *y = room + reach, *z = room + 2 * reach;
    NAMED(window_times)(window, line, reach, v, room);
    const double half = NAMED(dot)(v, w, reach) / 2;
    for (Py_ssize_t i = 0; i < reach; i++)
        w[i] -= half * v[i];
    for (Py_ssize_t i = 0; i < reach; i++)
        u[i] = bulge[i] - y[i] * v[0];
    const double beta = NAMED(reflect)(u, reach), inner = NAMED(dot)(u, y, reach);
    for (Py_ssize_t c = 0; c < reach; c++)
        z[c] = NAMED(dot)(bulge + c * line, u, reach) - inner * v[c];
    for (Py_ssize_t c = 0; c < reach; c++) {
        NAMED(subtract)(window + c * line, v[c], w, w[c], v, reach);
        NAMED(subtract)(bulge + c * line, v[c], y, z[c], u, reach);
    }
    memset(bulge, 0, (size_t)reach * sizeof(double));
    bulge[0] = beta;
    /* The next sweep's diagonal block lies one column further: it holds this row of the bulge above the diagonal too. */
    double *above = matrix + (start + reach) * 3 * reach - reach;
    for (Py_ssize_t c = 1; c < reach; c++)
        above[c] = bulge[c * line];
}

/* The sweeps of a group, `first` to `first + count`, NEAR at a time: these follow each other two steps apart through the
 * same part of the band while that is in the cache. `kept` is (steps, count, b), zeros, and takes the reflectors. Of
 * `shares` threads each does every so many times NEAR sweeps; `progress` says how many steps of each sweep are done. */
TARGET static void NAMED(chase)(double *matrix, Py_ssize_t size, Py_ssize_t reach, Py_ssize_t first, Py_ssize_t count, double *kept, double *room, int64_t *progress, Py_ssize_t share, Py_ssize_t shares)
{
    double *last = room + 4 * reach; /* what the step after the last one would apply: zeros, below the matrix */
    for (Py_ssize_t base = share * NEAR; base < count; base += shares * NEAR) {
        const Py_ssize_t near = count - base < NEAR ? count - base : NEAR;
        const Py_ssize_t longest = (size - 3 - first - base) / reach + 1;
        for (Py_ssize_t time = 0; time < longest + 2 * (near - 1); time++)
            for (Py_ssize_t one = 0; one < near; one++) {
                const Py_ssize_t sweep = first + base + one, step = time - 2 * one;
                const Py_ssize_t steps = (size - 3 - sweep) / reach + 1;
                if (step < 0 || step >= steps)
                    continue;
                if (one == 0 && sweep > 0 && !has_come(progress, sweep - 1, step + 2, size - 2))
                    return;
                double *v = kept + (step * count + base + one) * reach;
                if (step == 0) {
                    memcpy(v, matrix + sweep * 3 * reach + 1, (size_t)reach * sizeof(double));
                    matrix[sweep * 3 * reach + 1] = NAMED(reflect)(v, reach);
                }
                NAMED(advance)(matrix, reach, sweep + 1 + step * reach, v, step + 1 < steps ? v + count * reach : last, room);
                __atomic_store_n(progress + sweep, step + 1 < steps ? step + 1 : INT64_MAX, __ATOMIC_RELEASE);
            }
    }
}

#define REAL float
#define STRIP(name) NAMED(float_##name)
#include "_strips.h"

#define REAL double
#define STRIP(name) NAMED(double_##name)
#include "_strips.h"
