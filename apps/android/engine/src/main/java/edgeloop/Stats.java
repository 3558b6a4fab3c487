package edgeloop;

/**
 * What a conversation has cost so far.
 *
 * @param kvBytes of its K and V
 * @param rows that were computed: a token once for each stage and depth
 * @param calls of the engine
 */
public record Stats(long kvBytes, long rows, long calls) {}
