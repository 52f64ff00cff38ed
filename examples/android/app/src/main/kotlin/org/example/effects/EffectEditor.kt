package org.example.effects

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtLoraAdapter
import ai.onnxruntime.OrtSession
import android.content.res.AssetManager
import android.graphics.Bitmap
import org.json.JSONObject
import java.io.File
import java.nio.FloatBuffer
import kotlin.math.max

/**
 * One loaded base; effects are switched by swapping adapters.
 *
 * [assets] holds what `e2gan pull --format onnx-adapter` wrote, below `effects/`. ONNX Runtime maps adapters from
 * files, so each is copied to [cache] once. Not thread-safe: call it from one worker thread.
 */
class EffectEditor(private val assets: AssetManager, private val cache: File) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val baseId = manifestMeta("base").getString("base_id")
    private val session: OrtSession = environment.createSession(copied("base/$BASE_FILE").path, OrtSession.SessionOptions())
    private val adapters = mutableMapOf<String, OrtLoraAdapter>()

    /** Names of the effects in the app. */
    val effects: List<String> = assets.list("$ROOT/adapters").orEmpty().sorted()

    /** Edits a photo; its sides are padded to multiples of 16 and cropped back. */
    fun edit(photo: Bitmap, effect: String): Bitmap {
        val rows = padded(photo.height)
        val columns = padded(photo.width)
        val shape = longArrayOf(1, 3, rows.toLong(), columns.toLong())
        OnnxTensor.createTensor(environment, planes(photo, rows, columns), shape).use { image ->
            OrtSession.RunOptions().use { options ->
                options.addActiveLoraAdapter(adapter(effect))
                session.run(mapOf("image" to image), setOf("edited"), options).use { result ->
                    val edited = (result.get(0) as OnnxTensor).floatBuffer
                    return bitmap(edited, rows, columns, photo.width, photo.height)
                }
            }
        }
    }

    override fun close() {
        adapters.values.forEach { it.close() }
        session.close()
    }

    /** ONNX Runtime does not compare an adapter with its base, so the manifests are compared here. */
    private fun adapter(effect: String): OrtLoraAdapter = adapters.getOrPut(effect) {
        val theirs = manifestMeta("adapters/$effect").getString("base_id")
        require(theirs == baseId) { "$effect belongs to base $theirs, the app has $baseId: pull again" }
        OrtLoraAdapter.create(copied("adapters/$effect/$ADAPTER_FILE").path)
    }

    private fun manifestMeta(folder: String): JSONObject {
        val text = assets.open("$ROOT/$folder/manifest.json").use { it.readBytes().decodeToString() }
        return JSONObject(text).getJSONObject("meta")
    }

    private fun copied(name: String): File {
        val target = File(cache, "$ROOT/$name")
        target.parentFile?.mkdirs()
        val partial = File(target.path + ".part")
        assets.open("$ROOT/$name").use { from -> partial.outputStream().use { from.copyTo(it) } }
        check(partial.renameTo(target)) { "cannot write ${target.path}" }
        return target
    }

    private companion object {
        const val ROOT = "effects"
        const val BASE_FILE = "base.onnx"
        const val ADAPTER_FILE = "adapter.onnx_adapter"
        const val MULTIPLE = 16
        const val MIN_SIDE = 32

        fun padded(n: Int) = max(MIN_SIDE, (n + MULTIPLE - 1) / MULTIPLE * MULTIPLE)

        fun mirrored(i: Int, length: Int): Int {
            val period = i % (2 * length)
            return if (period < length) period else 2 * length - 1 - period
        }

        /** ARGB pixels to red, green and blue planes in [-1, 1]. */
        fun planes(photo: Bitmap, rows: Int, columns: Int): FloatBuffer {
            val pixels = IntArray(photo.width * photo.height)
            photo.getPixels(pixels, 0, photo.width, 0, 0, photo.width, photo.height)
            val size = rows * columns
            val values = FloatArray(3 * size)
            for (y in 0 until rows) for (x in 0 until columns) {
                val pixel = pixels[mirrored(y, photo.height) * photo.width + mirrored(x, photo.width)]
                val at = y * columns + x
                values[at] = (pixel shr 16 and 255) / 127.5f - 1f
                values[size + at] = (pixel shr 8 and 255) / 127.5f - 1f
                values[2 * size + at] = (pixel and 255) / 127.5f - 1f
            }
            return FloatBuffer.wrap(values)
        }

        /** Planes, about [-1, 1], to a bitmap of the photo's size. */
        fun bitmap(values: FloatBuffer, rows: Int, columns: Int, width: Int, height: Int): Bitmap {
            val size = rows * columns
            fun level(i: Int) = ((values.get(i).coerceIn(-1f, 1f) + 1f) * 127.5f + 0.5f).toInt()
            val pixels = IntArray(width * height) { i ->
                val at = i / width * columns + i % width
                (255 shl 24) or (level(at) shl 16) or (level(size + at) shl 8) or level(2 * size + at)
            }
            return Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888)
        }
    }
}
