package edgeloop;

/**
 * What an open model is.
 *
 * @param depths how often the loop is run at most
 * @param vocabulary how many tokens there are
 * @param contextLength the most tokens of a text
 * @param threads that compute
 * @param fileBytes of the mapped file
 * @param kernels the name of those that are used
 */
public record ModelInfo(int depths, int vocabulary, int contextLength, int threads, long fileBytes, String kernels) {}
