/* Reflectors on a strip of a slab, included for each REAL. A row of a strip is 128 bytes, so that all rows that the
 * reflectors of a step touch stay in the first cache.
 *
 * Four reflectors are applied in one go, so that a row is loaded and stored half as often as it would be by pairs. They
 * are those of four sweeps, the last one first, each of which begins a row further up. `prepare` lays them side by side,
 * (b + 3, 4), with zeros where one has no row. With g_ij = v_i'v_j, and 1 + h_i = 2 / v_i'v_i,
 * where h_i is what rounding has left,
 *
 *     s_0 = (1 + h_0) v_0'X;    s_1 = (1 + h_1) (v_1'X - g_10 s_0);    s_2 = (1 + h_2) (v_2'X - g_20 s_0 - g_21 s_1);    ...
 *     X - v_0 s_0 - v_1 s_1 - v_2 s_2 - v_3 s_3
 *
 * so that what is applied is orthogonal for any v, as the blocks of `left_factors` are.
 */
typedef REAL STRIP(vector) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));

/* Keeps a vector in a register: the compiler would load it from memory for each use. */
#ifdef __x86_64__
#define HELD(value) ({ STRIP(vector) held = value; __asm__("" : "+x"(held)); held; })
#else
#define HELD(value) (value)
#endif

/* Add a row times each reflector's number to the sums s0 to s3 of its left half and t0 to t3 of its right one. */
#define ADD_ROW(numbers, row, s, t) do { \
        const STRIP(vector) left = HELD((row)[0]), right = HELD((row)[1]); \
        s##0 += (numbers)[0] * left, t##0 += (numbers)[0] * right; \
        s##1 += (numbers)[1] * left, t##1 += (numbers)[1] * right; \
        s##2 += (numbers)[2] * left, t##2 += (numbers)[2] * right; \
        s##3 += (numbers)[3] * left, t##3 += (numbers)[3] * right; \
    } while (0)

#if VECTOR == 16 /* where no product is fused with its difference, this rounds x once and costs the same */
#define LESS(x, a, b, c, d) ((x) - (((a) + (b)) + ((c) + (d))))
#else
#define LESS(x, a, b, c, d) ((x) - (a) - (b) - (c) - (d))
#endif

TARGET static inline void STRIP(four)(const REAL *restrict v, const REAL *restrict g, STRIP(vector) *restrict x, Py_ssize_t count)
{
    const Py_ssize_t line = 128 / VECTOR; /* vectors in a row, of which two are worked on */
    STRIP(vector) s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, t0 = {0}, t1 = {0}, t2 = {0}, t3 = {0};
    Py_ssize_t i = 0;
#if VECTOR == 64 /* there are registers for twice as many sums, which then wait half as often for each other */
    STRIP(vector) a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0}, b0 = {0}, b1 = {0}, b2 = {0}, b3 = {0};
    for (; i + 2 <= count; i += 2) {
        ADD_ROW(v + 4 * i, x + line * i, s, t);
        ADD_ROW(v + 4 * i + 4, x + line * i + line, a, b);
    }
    s0 += a0, s1 += a1, s2 += a2, s3 += a3, t0 += b0, t1 += b1, t2 += b2, t3 += b3;
#endif
    for (; i < count; i++)
        ADD_ROW(v + 4 * i, x + line * i, s, t);
    const REAL *h = g + 6;
    s0 += h[0] * s0;
    t0 += h[0] * t0;
    s1 -= g[0] * s0;
    t1 -= g[0] * t0;
    s1 += h[1] * s1;
    t1 += h[1] * t1;
    s2 = s2 - g[1] * s0 - g[2] * s1;
    t2 = t2 - g[1] * t0 - g[2] * t1;
    s2 += h[2] * s2;
    t2 += h[2] * t2;
    s3 = s3 - g[3] * s0 - g[4] * s1 - g[5] * s2;
    t3 = t3 - g[3] * t0 - g[4] * t1 - g[5] * t2;
    s3 += h[3] * s3;
    t3 += h[3] * t3;
    for (i = 0; i < count; i++) {
        x[line * i] = LESS(x[line * i], v[4 * i] * s0, v[4 * i + 1] * s1, v[4 * i + 2] * s2, v[4 * i + 3] * s3);
        x[line * i + 1] = LESS(x[line * i + 1], v[4 * i] * t0, v[4 * i + 1] * t1, v[4 * i + 2] * t2, v[4 * i + 3] * t3);
    }
}

/* All reflectors of a group, (steps, fours, b + 3, 4), on the `rows` rows of the strip that begin where the first one
 * does; `couplings` is (steps, fours, COUPLINGS): g_10, g_20, g_21, g_30, g_31, g_32, and h_0 to h_3. */
TARGET static void STRIP(apply)(const void *group, const void *couplings, Py_ssize_t steps, Py_ssize_t fours, Py_ssize_t reach, void *strip, Py_ssize_t rows)
{
    const Py_ssize_t length = 4 * (reach + 3), line = 128 / VECTOR;
    for (Py_ssize_t step = 0; step < steps; step++)
        for (Py_ssize_t four = fours - 1; four >= 0; four--) {
            const Py_ssize_t here = step * fours + four, next = four > 1 ? here - 2 : here + 2 * fours - 2;
            const REAL *v = (const REAL *)group + here * length;
            const REAL *g = (const REAL *)couplings + here * COUPLINGS;
            const Py_ssize_t top = step * reach + 4 * four, left = rows - top;
            /* They come from far away, and their last page says nothing of the next. */
            for (Py_ssize_t i = 0; i < length && next < steps * fours; i += 64 / (Py_ssize_t)sizeof(REAL))
                __builtin_prefetch((const REAL *)group + next * length + i);
            for (Py_ssize_t part = 0; part < line && left > 0; part += 2)
                STRIP(four)(v, g, (STRIP(vector) *)strip + top * line + part, left < reach + 3 ? left : reach + 3);
        }
}

/* Lay the reflectors of a group, (steps, count, b), side by side as `apply` takes them. */
TARGET static void STRIP(prepare)(const void *kept, Py_ssize_t steps, Py_ssize_t count, Py_ssize_t reach, void *group, void *couplings)
{
    const Py_ssize_t fours = (count + 3) / 4;
    memset(group, 0, (size_t)(steps * fours * 4 * (reach + 3)) * sizeof(REAL));
    for (Py_ssize_t step = 0; step < steps; step++)
        for (Py_ssize_t four = 0; four < fours; four++) {
            REAL *v = (REAL *)group + (step * fours + four) * 4 * (reach + 3);
            REAL *g = (REAL *)couplings + (step * fours + four) * COUPLINGS;
            for (Py_ssize_t place = 0; place < 4; place++) {
                const Py_ssize_t sweep = 4 * four + 3 - place;
                const Py_ssize_t from = (step * count + sweep) * reach;
                for (Py_ssize_t i = 0; i < reach && sweep < count; i++)
                    v[4 * (i + 3 - place) + place] = ((const REAL *)kept)[from + i];
            }
            double sums[COUPLINGS] = {0};
            for (Py_ssize_t i = 0; i < reach + 3; i++) {
                const double a = v[4 * i], b = v[4 * i + 1], c = v[4 * i + 2], d = v[4 * i + 3];
                sums[0] += b * a;
                sums[1] += c * a;
                sums[2] += c * b;
                sums[3] += d * a;
                sums[4] += d * b;
                sums[5] += d * c;
                sums[6] += a * a;
                sums[7] += b * b;
                sums[8] += c * c;
                sums[9] += d * d;
            }
            for (int i = 0; i < COUPLINGS; i++)
                g[i] = (REAL)(i < 6 ? sums[i] : sums[i] > 0 ? 2 / sums[i] - 1 : 0);
        }
}

#undef REAL
#undef STRIP
#undef HELD
#undef ADD_ROW
#undef LESS
