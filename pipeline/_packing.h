/* One kind of what makes rows ready for the kernels of _exact.c: TARGET and NAMED, and how four rows become a line of a
 * tile, are set before. */

/* Make tiles of a right factor of STRIP columns of rows of bytes, flipping their top bits, which subtracts 128. */
TARGET static void NAMED(pack_strip)(
    const uint8_t *from, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t columns, uint8_t *tiles, int32_t *sums)
{
    uint8_t few[4][STRIP];
    START_SUMS
    for (Py_ssize_t row = 0; row < (rows + CHUNK - 1) / CHUNK * CHUNK; row += 4, tiles += 4 * STRIP) {
        const uint8_t *four = from + row * stride;
        Py_ssize_t apart = stride;
        if (row + 4 > rows || columns < STRIP) { /* what is not there becomes zero */
            memset(few, 128, sizeof few);
            for (Py_ssize_t i = 0; i < 4 && row + i < rows; i++)
                memcpy(few[i], four + i * stride, (size_t)(columns < STRIP ? columns : STRIP));
            four = few[0];
            apart = STRIP;
        }
        INTERLEAVE(four, apart, tiles)
    }
    END_SUMS(sums)
}
