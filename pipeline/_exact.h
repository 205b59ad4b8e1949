/* One kind of the kernels of _exact.c: TARGET and NAMED, and what its registers do, are set before. */

/* Add to rows of the total what was summed for a pair of strips by a pair of strips. */
TARGET static inline void NAMED(add_sums)(const product *the, const int32_t *sums, Py_ssize_t row, Py_ssize_t column)
{
    const Py_ssize_t rows = the->last_row - row < PAIR ? the->last_row - row : PAIR;
    const Py_ssize_t columns = the->last_column - column < PAIR ? the->last_column - column : PAIR;
    for (Py_ssize_t i = 0; i < rows; i++, sums += PAIR)
        add_row(the, sums, row + i, column, columns);
}

/* Add to a part of a tile of the total; below the diagonal only what lies in a square of PAIR on it. */
TARGET static void NAMED(multiply)(const product *the, void *room)
{
    TILES_BEGIN
    for (Py_ssize_t chunk = 0; chunk < the->chunks; chunk += DEEP) {
        const Py_ssize_t deep = the->chunks - chunk < DEEP ? the->chunks - chunk : DEEP;
        int32_t *sums = room; /* close together, where rows of the total would push each other out of the cache */
        for (Py_ssize_t row = the->first_row; row < the->last_row; row += PAIR) {
            const uint8_t *left = the->left + (row / STRIP * the->chunks + chunk) * TILE;
            const Py_ssize_t diagonal = the->is_diagonal ? row : 0;
            Py_ssize_t column = the->first_column > diagonal ? the->first_column : diagonal;
            for (; column < the->last_column; column += PAIR, sums += PAIR * PAIR) {
                const uint8_t *right = the->right + (column / STRIP * the->chunks + chunk) * TILE;
                if (chunk == 0) {
                    CLEAR_TILES
                } else {
                    LOAD_TILES(sums)
                }
                for (Py_ssize_t i = 0; i < deep; i++) {
                    STEP(left + i * TILE, right + i * TILE, the->chunks * TILE)
                }
                STORE_TILES(sums)
                if (chunk + deep == the->chunks)
                    NAMED(add_sums)(the, sums, row, column);
            }
        }
    }
    TILES_END
}
