/* Reflectors on a strip of a slab, included for each REAL. A row of a strip is 192 bytes, three vectors of AVX-512:
 * where b = 64 all rows that the reflectors of a step touch stay in the first cache.
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
#define HELD(value) ({ STRIP(vector) held = value; __asm__("" : "+v"(held)); held; })
#define USED(value) __asm__("" : : "v"(value)) /* up to here, so that no sum is made in its place and moved back */
#else
#define HELD(value) (value)
#define USED(value) (void)(value)
#endif

#define LINE (ROW_BYTES / VECTOR) /* vectors in a row */
#define WIDE (VECTOR == 16 ? 2 : 3) /* of which so many are worked on: their sums and they take all registers there are */
#define EACH _Pragma("GCC unroll 3") for (int k = 0; k < WIDE; k++)

TARGET static inline void STRIP(four)(const REAL *restrict v, const REAL *restrict g, STRIP(vector) *restrict x, Py_ssize_t count)
{
    STRIP(vector) s0[WIDE] = {{0}}, s1[WIDE] = {{0}}, s2[WIDE] = {{0}}, s3[WIDE] = {{0}}, row[WIDE];
    for (Py_ssize_t i = 0; i < count; i++) {
        EACH row[k] = HELD(x[LINE * i + k]);
        EACH s0[k] += v[4 * i] * row[k];
        EACH s1[k] += v[4 * i + 1] * row[k];
        EACH s2[k] += v[4 * i + 2] * row[k];
        EACH s3[k] += v[4 * i + 3] * row[k];
        EACH USED(row[k]);
    }
    const REAL *h = g + 6;
    EACH s0[k] += h[0] * s0[k];
    EACH s1[k] -= g[0] * s0[k];
    EACH s1[k] += h[1] * s1[k];
    EACH s2[k] = s2[k] - g[1] * s0[k] - g[2] * s1[k];
    EACH s2[k] += h[2] * s2[k];
    EACH s3[k] = s3[k] - g[3] * s0[k] - g[4] * s1[k] - g[5] * s2[k];
    EACH s3[k] += h[3] * s3[k];
    for (Py_ssize_t i = 0; i < count; i++) {
        EACH row[k] = HELD(x[LINE * i + k]);
#if VECTOR == 16 /* where no product is fused with its difference, this rounds x once and costs the same */
        EACH row[k] -= (v[4 * i] * s0[k] + v[4 * i + 1] * s1[k]) + (v[4 * i + 2] * s2[k] + v[4 * i + 3] * s3[k]);
#else
        EACH row[k] = HELD(row[k] - v[4 * i] * s0[k]);
        EACH row[k] = HELD(row[k] - v[4 * i + 1] * s1[k]);
        EACH row[k] = HELD(row[k] - v[4 * i + 2] * s2[k]);
        EACH row[k] -= v[4 * i + 3] * s3[k];
#endif
        EACH x[LINE * i + k] = row[k];
    }
}

/* All reflectors of a group, (steps, fours, b + 3, 4), on the `rows` rows of the strip that begin where the first one
 * does; `couplings` is (steps, fours, COUPLINGS): g_10, g_20, g_21, g_30, g_31, g_32, and h_0 to h_3. */
TARGET static void STRIP(apply)(const void *group, const void *couplings, Py_ssize_t steps, Py_ssize_t fours, Py_ssize_t reach, void *strip, Py_ssize_t rows)
{
    const Py_ssize_t length = 4 * (reach + 3);
    for (Py_ssize_t step = 0; step < steps; step++)
        for (Py_ssize_t four = fours - 1; four >= 0; four--) {
            const Py_ssize_t here = step * fours + four, next = four > 1 ? here - 2 : here + 2 * fours - 2;
            const REAL *v = (const REAL *)group + here * length;
            const REAL *g = (const REAL *)couplings + here * COUPLINGS;
            const Py_ssize_t top = step * reach + 4 * four, left = rows - top;
            /* They come from far away, and their last page says nothing of the next. */
            for (Py_ssize_t i = 0; i < length && next < steps * fours; i += 64 / (Py_ssize_t)sizeof(REAL))
                __builtin_prefetch((const REAL *)group + next * length + i);
            for (Py_ssize_t part = 0; part < LINE && left > 0; part += WIDE)
                STRIP(four)(v, g, (STRIP(vector) *)strip + top * LINE + part, left < reach + 3 ? left : reach + 3);
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
#undef USED
#undef LINE
#undef WIDE
#undef EACH
