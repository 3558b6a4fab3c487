package edgeloop;

/**
 * A token of an answer.
 *
 * @param text what the token completes: whole characters; "" while a character or a stop string is undecided, of a token
 *     that ends the text, and where the model has no tokenizer
 * @param token its id
 * @param depth how many depths were run for it
 * @param nanoseconds that it took; the first one with what was run before it
 */
public record Piece(String text, long token, int depth, long nanoseconds) {}
