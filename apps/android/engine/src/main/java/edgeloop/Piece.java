package edgeloop;

/**
 * A token of an answer.
 *
 * @param token its id
 * @param depth how many depths the token before it ran to choose it
 * @param nanoseconds since the token before it, or since the prompt was read
 */
public record Piece(long token, int depth, long nanoseconds) {}
